"""CSER and its neighbours: communication-efficient optimizers with an honest byte ledger, and studies that choose one.

Everything here is imported when it is first asked for, so that `import cser_ray` itself costs no torch, no Ray and no pandas.

>>> from cser_ray import GRBS
>>> GRBS(16).ratio
16
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cser_ray.communication.communicator import Communicator
    from cser_ray.communication.host_communicator import HostCommunicator
    from cser_ray.compressors import GRBS
    from cser_ray.integrations.workers import load_worker, save_workers
    from cser_ray.optimizers import (
        CSEA,
        CSER,
        CSERPL,
        EFSGD,
        SGD,
        CSERRelease,
        DiLoCo,
        LocalSGD,
        NoSync,
        PartialReset,
        QSparseLocalSGD,
    )
    from cser_ray.store.read import read_history, read_runs
    from tuning.compare.compare import compare
    from tuning.execute.run import run_study
    from tuning.study.study import Study

    __version__: str

_PLACES = {
    **dict.fromkeys(("CSEA", "CSER", "CSERPL", "EFSGD", "SGD", "CSERRelease"), "cser_ray.optimizers"),
    **dict.fromkeys(("DiLoCo", "LocalSGD", "NoSync", "PartialReset", "QSparseLocalSGD"), "cser_ray.optimizers"),
    "GRBS": "cser_ray.compressors",
    "Communicator": "cser_ray.communication.communicator",
    "HostCommunicator": "cser_ray.communication.host_communicator",
    **dict.fromkeys(("load_worker", "save_workers"), "cser_ray.integrations.workers"),
    "Study": "tuning.study.study",
    "run_study": "tuning.execute.run",
    "compare": "tuning.compare.compare",
    "read_runs": "cser_ray.store.read",
    "read_history": "cser_ray.store.read",
}
"""Name -> the module that has it."""

__all__ = [
    "CSEA",
    "CSER",
    "CSERPL",
    "EFSGD",
    "GRBS",
    "SGD",
    "CSERRelease",
    "Communicator",
    "DiLoCo",
    "HostCommunicator",
    "LocalSGD",
    "NoSync",
    "PartialReset",
    "QSparseLocalSGD",
    "Study",
    "compare",
    "load_worker",
    "read_history",
    "read_runs",
    "run_study",
    "save_workers",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("cser-ray")
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    if not _PLACES[name].startswith("cser_ray."):
        from cser_ray.own_packages import claim

        claim(warn=True)
    value = globals()[name] = getattr(import_module(_PLACES[name]), name)
    return value


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
