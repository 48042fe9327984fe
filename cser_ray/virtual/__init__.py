"""Many virtual workers of one module on one device: the step of all of them as one, eager, recorded or compiled."""

from cser_ray.virtual.forward import batch_statistics, evaluate_rows, forward_rows, has_batchnorm
from cser_ray.virtual.step import GradientStep, Way, choose_way
from cser_ray.virtual.workers import VMAP_ON_CPU, VirtualWorkers, backward

__all__ = [
    "VMAP_ON_CPU",
    "GradientStep",
    "VirtualWorkers",
    "Way",
    "backward",
    "batch_statistics",
    "choose_way",
    "evaluate_rows",
    "forward_rows",
    "has_batchnorm",
]
