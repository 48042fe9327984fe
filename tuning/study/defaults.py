"""What a study or a run takes where the user says nothing: what its task brings, as the paper ran it where the paper did."""

from collections.abc import Mapping
from typing import Any

from cser_ray.settings import declared

_ADAPTIVE: dict[str, Any] = {"lrs": (0.0005, 0.001, 0.002, 0.004), "lr": 0.002}
RATES_AROUND: dict[str, dict[str, Any]] = {"adamw": _ADAPTIVE, "muon": _ADAPTIVE}
"""Inner step -> learning rates where nobody says: those of SGD, and of tasks, are far too large for it."""


def with_task_defaults(kind: type, given: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the given settings that a class of settings has, over the defaults of their task.

    Raises ValueError for an unknown task, and for options that it has no use for.
    """
    from cser_ray.tasks import make_task, task_defaults

    names = {each.name: each for each in declared(kind)}
    task = given.get("task", names["task"].default)
    brought = dict(task_defaults(task)) | RATES_AROUND.get(given.get("inner", ""), {})
    if "batch_size" not in given:
        options = {name: given[name] for name in ("model", "data_dir", "coarse_labels") if given.get(name)}
        brought["batch_size"] = make_task(task, **options).batch_size
    return {name: value for name, value in (brought | dict(given)).items() if name in names}
