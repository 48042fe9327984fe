"""The optimizers: drop-in `torch.optim.Optimizer`s. By the names users type they are in `cser_ray.methods.METHODS`."""

from cser_ray.optimizers.base import FlatOptimizer
from cser_ray.optimizers.csea import CSEA
from cser_ray.optimizers.cser import CSER
from cser_ray.optimizers.cser_pl import CSERPL
from cser_ray.optimizers.cser_release import CSERRelease
from cser_ray.optimizers.diloco import DiLoCo
from cser_ray.optimizers.ef_sgd import EFSGD
from cser_ray.optimizers.local_sgd import LocalSGD
from cser_ray.optimizers.muloco import MuLoCo
from cser_ray.optimizers.partial_reset import PartialReset
from cser_ray.optimizers.placement import Placement
from cser_ray.optimizers.qsparse import QSparseLocalSGD
from cser_ray.optimizers.sgd import SGD, NoSync
from cser_ray.optimizers.sparseloco import SparseLoCo
from cser_ray.optimizers.sparta import SPARTA
from cser_ray.optimizers.streaming_diloco import StreamingDiLoCo

__all__ = [
    "CSEA",
    "CSER",
    "CSERPL",
    "EFSGD",
    "SGD",
    "SPARTA",
    "CSERRelease",
    "DiLoCo",
    "FlatOptimizer",
    "LocalSGD",
    "MuLoCo",
    "NoSync",
    "PartialReset",
    "Placement",
    "QSparseLocalSGD",
    "SparseLoCo",
    "StreamingDiLoCo",
]
