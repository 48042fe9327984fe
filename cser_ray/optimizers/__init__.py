"""Optimizers under the names users type. A new method is one file, one line here and one budget in `cser_ray.budget`."""

from cser_ray.optimizers.base import FlatOptimizer
from cser_ray.optimizers.csea import CSEA
from cser_ray.optimizers.cser import CSER
from cser_ray.optimizers.cser_pl import CSERPL
from cser_ray.optimizers.cser_release import CSERRelease
from cser_ray.optimizers.diloco import DiLoCo
from cser_ray.optimizers.ef_sgd import EFSGD
from cser_ray.optimizers.local_sgd import LocalSGD
from cser_ray.optimizers.placement import Placement
from cser_ray.optimizers.qsparse import QSparseLocalSGD
from cser_ray.optimizers.sgd import SGD, NoSync

OPTIMIZERS: dict[str, type[FlatOptimizer]] = {
    "sgd": SGD,
    "no-sync": NoSync,
    "local-sgd": LocalSGD,
    "diloco": DiLoCo,
    "ef-sgd": EFSGD,
    "qsparse": QSparseLocalSGD,
    "csea": CSEA,
    "cser-pl": CSERPL,
    "cser": CSER,
    "cser-release": CSERRelease,
}
"""Name -> class. Every entry is held to the same laws by tests/contract."""

__all__ = [
    "CSEA",
    "CSER",
    "CSERPL",
    "EFSGD",
    "OPTIMIZERS",
    "SGD",
    "CSERRelease",
    "DiLoCo",
    "FlatOptimizer",
    "LocalSGD",
    "NoSync",
    "Placement",
    "QSparseLocalSGD",
]
