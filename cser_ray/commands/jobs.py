"""What the commands share that write a RayJob of KubeRay in place of running something."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from tuning.take_home.rayjob import Pods

POD_OPTIONS: list[Callable[[Any], Any]] = [
    click.option("--pod-gpus", type=click.IntRange(min=0), default=0, show_default=True,
                 help="With rayjob: GPUs of a worker's pod, one a process."),
    click.option("--image", help="With rayjob: of all pods [Ray's own, of the versions that are installed here]."),
    click.option("--package", help="With rayjob: what pip installs in them; '' for nothing [cser-ray==VERSION]."),
]  # fmt: skip


def take_pods(given: dict[str, Any], workers: int, processes: int, cpus: float) -> "Pods":
    """The worker pods that the options ask for, which are taken out of `given`. Raises ValueError as `Pods` does."""
    from importlib.metadata import version

    from tuning.take_home.rayjob import Pods

    gpus, image, package = (given.pop(name, None) for name in ("pod_gpus", "image", "package"))
    package = f"cser-ray=={version('cser-ray')}" if package is None else package
    return Pods(workers, processes, cpus, gpus or 0, image or "", package)


def refuse_pods(given: Mapping[str, Any], asked: str) -> None:
    """Raise ValueError for an option of pods where no RayJob is asked for, as `asked` would do it."""
    for name in ("pod_gpus", "image", "package"):
        if given.get(name) not in (None, 0):
            raise ValueError(f"--{name.replace('_', '-')} is of a RayJob: add {asked}, or leave it out")
