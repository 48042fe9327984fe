"""What a study or a run takes where the user says nothing: what its task brings, as the paper ran it where the paper did."""

from collections.abc import Mapping
from typing import Any

from cser_ray.config import INNERS, local_step
from cser_ray.settings import declared


def with_task_defaults(kind: type, given: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the given settings that a class of settings has, over the defaults of their task.

    Raises ValueError for an unknown task, and for options that it has no use for.
    """
    from cser_ray.tasks import make_task, task_defaults

    names = {each.name: each for each in declared(kind)}
    task = given.get("task", names["task"].default)
    brought = dict(task_defaults(task))
    methods = given.get("methods") or ([given["method"]] if "method" in given else ())
    inner = local_step(methods, given.get("inner") or names["inner"].default)
    if inner != names["inner"].default:  # rates that a task brings are those of SGD
        brought |= {"lrs": INNERS[inner].grid, "lr": INNERS[inner].single}
    if "batch_size" not in given:
        options = {name: given[name] for name in ("model", "data_dir", "coarse_labels") if given.get(name)}
        brought["batch_size"] = make_task(task, **options).batch_size
    return {name: value for name, value in (brought | dict(given)).items() if name in names}
