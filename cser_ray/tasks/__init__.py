"""The learning problems: `TASKS`, and `make_task`, which also takes a task of your own as "module.path:ClassName".

A task of your own is a class with the members of `base.Task`, which says what else it may have; its constructor takes
whichever of `model`, `data_dir` and `coarse_labels` it has a use for. It must be importable wherever workers run.
"""

import difflib
import importlib
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from cser_ray.own_packages import hidden
from cser_ray.registry import Registry
from cser_ray.tasks.base import Task

TASKS: Registry[Callable[..., Task]] = Registry(
    "task",
    "cser_ray.tasks",
    {
        "digits": "cser_ray.tasks.digits:Digits",
        "mnist1d": "cser_ray.tasks.mnist1d:Mnist1D",
        "pytext": "cser_ray.tasks.pytext:PyText",
        "cifar100": "cser_ray.tasks.cifar100:Cifar100",
        "imagenet": "cser_ray.tasks.imagenet:ImageNet",
    },
    way_out=". A task of your own is named as module.path:ClassName",
)
"""Name to class. Each class has a one-line `description` and a `batch_size`, the default per worker."""


def make_task(name: str, *, model: str = "", data_dir: str = "", coarse_labels: bool = False) -> Task:
    """Return the task of that name; options left at their defaults are the task's own.

    Raises ValueError for a name that is not known or cannot be imported, and for an option that the task would ignore.
    Samples are read when `splits()` is called, not here.
    """
    factory = import_task(name) if ":" in name else TASKS[name]
    options = {"model": model, "data_dir": data_dir, "coarse_labels": coarse_labels}
    given = {option: value for option, value in options.items() if value}
    for option in given:
        if not takes(factory, option):
            able = [other for other in TASKS if takes(TASKS[other], option)]
            raise ValueError(
                f"the task {name!r} has no use for --{option.replace('_', '-')} (given: {given[option]!r}): "
                f"leave it out, or take a task that has: {', '.join(able)}"
            )
    task = factory(**given)
    members = [member for member in (*Task.__annotations__, *vars(Task)) if not member.startswith("_")]
    if missing := [member for member in members if member not in dir(task)]:
        raise ValueError(
            f"the task {name!r} lacks {', '.join(missing)}: give it the members of cser_ray.tasks.base.Task"
        )
    return task


def task_defaults(name: str) -> Mapping[str, Any]:
    """What a study of this task takes where the user says nothing: settings that its class has in `study_defaults`."""
    factory = import_task(name) if ":" in name else TASKS[name]
    found: Mapping[str, Any] = getattr(factory, "study_defaults", {})
    return found


def takes(factory: Callable[..., Task], option: str) -> bool:
    """Say whether a task's constructor has a parameter of that name."""
    return option in inspect.signature(factory).parameters


def import_task(name: str) -> Callable[..., Task]:
    """Return the class that "module.path:ClassName" names; raises ValueError saying what failed."""
    module_name, _, class_name = name.partition(":")
    if not all(part.isidentifier() for part in module_name.split(".")) or not class_name.isidentifier():
        raise ValueError(f"{name!r} does not name a task: a task of your own is named as module.path:ClassName")
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        ours = hidden((error.name or "").partition(".")[0])
        way_out = ours or "its module must be installed or on PYTHONPATH, on every machine where workers run"
        raise ValueError(f"the task {name!r} cannot be imported ({error}): {way_out}") from error
    factory = getattr(module, class_name, None)
    if not callable(factory):
        close = difflib.get_close_matches(class_name, dir(module), n=1)
        raise ValueError(
            f"the task {name!r} cannot be imported: {module_name} has no class {class_name}"
            f"{f'; did you mean {close[0]}?' if close else ''}"
        )
    return factory  # type: ignore[no-any-return]
