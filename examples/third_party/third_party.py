"""What another package adds to cser-ray: a method, a compressor, a task, a searcher and a scheduler of Tune."""

from dataclasses import dataclass
from typing import Any

import torch
from ray.tune.schedulers import MedianStoppingRule, TrialScheduler
from torch import Tensor, nn

from cser_ray.compressors.gathered import GatheredMessage
from cser_ray.methods import Method
from cser_ray.optimizers import FlatOptimizer
from cser_ray.structure import Structure, overall_ratio
from cser_ray.tasks.base import Splits, TensorDataset
from cser_ray.tasks.digits import Digits
from cser_ray.tasks.mlp import batchnorm_mlp
from cser_ray.tasks.splitting import splits_fingerprint
from tuning.study.lattice import points
from tuning.study.searchers import Losses, Searcher, Wanted
from tuning.study.study import Study


class Elastic(FlatOptimizer):
    """Local SGD whose workers go half of the way to their mean every H steps. R_C = H."""

    def __init__(self, *args: Any, reset_interval: int, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.reset_interval = reset_interval

    def update(self, x: Tensor, g: Tensor, t: int) -> None:
        self.local_step_(x, g)
        if t % self.reset_interval == 0:
            x.lerp_(self.communicator.mean(x.clone(), "reset").expand_as(x), 0.5)


ELASTIC = Method(
    name="elastic",
    help="local-sgd whose workers go half of the way to their mean every H = R_C steps",
    rule="sends the whole model every H steps: H = R_C",
    formula=overall_ratio,
    optimizer="third_party:Elastic",
    knobs=("reset_interval",),
    arguments={"reset_interval": "reset_interval"},
)


@dataclass(frozen=True)
class Half:
    """Every value in 16 bits: floats of half precision, gathered from all workers."""

    workers: range = range(1)

    def with_streams(self, seeds: tuple[int, ...], stream: int, workers: range) -> "Half":
        return Half(workers)

    def compress(self, v: Tensor, call: int) -> GatheredMessage:
        return GatheredMessage(v, v.to(torch.float16), self.workers, lambda payload, workers: payload.to(v.dtype))


class Parity(Digits):
    """Is a handwritten digit odd?"""

    name, model_name, classes = "parity", "mlp-64-32-2", 2
    description = "is a handwritten digit odd? a BatchNorm MLP of 2 242 parameters"

    def model(self) -> nn.Module:
        return batchnorm_mlp(64, 32, 2)

    def splits(self) -> Splits:
        parts = super().splits()
        return Splits(*(TensorDataset(p.inputs, p.targets % 2) for p in (parts.train, parts.validation, parts.test)))

    def content_hash(self) -> str:
        return splits_fingerprint(self.splits())


def longest(wanted: Wanted, losses: Losses) -> list[Structure]:
    """Structures with the longest intervals first."""
    found = points(wanted.method, wanted.ratio, wanted.steps)
    return sorted(found, key=lambda structure: -structure.reset_interval)[: wanted.count]


LONGEST = Searcher("the longest intervals first", longest)


def median(study: Study) -> TrialScheduler:
    """Stops what is worse than the median of the others."""
    return MedianStoppingRule(time_attr="evaluation", metric="val_loss", mode="min", grace_period=2)
