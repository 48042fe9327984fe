"""What is special of `dgc`: at ratio 1, the warm-up, clipping, groups, refusals."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import Parameter

from cser_ray.communication.communicator import Communicator
from cser_ray.optimizers import Placement
from cser_ray.systems_paper import dgc
from tests.contract.system_cases import so_many
from tests.stacked import LR, OPTIMIZERS, STEPS, D, build, distance, dropping, logistic, start, trajectory


def test_dgc_at_ratio_one_is_sgd() -> None:
    """Everything is sent in one all-reduce, and nothing is forgotten."""
    sgd = build("sgd", 3, weight_decay=0.05)
    for x, y in zip(
        trajectory(build("dgc", 3, ratio=1, weight_decay=0.05), logistic(3)), trajectory(sgd, logistic(3)), strict=True
    ):
        assert torch.equal(x, y)


def test_the_warm_up_of_dgc_is_the_papers() -> None:
    """At one coordinate in a thousand: 25, 6.3, 1.6 and 0.4 % in four equal stages, and then 0.1 %."""
    placement = Placement(Communicator(8, group=None), stacked=True)
    optimizer: Any = OPTIMIZERS["dgc"](
        [Parameter(torch.ones(8, 100_000))], ratio=125, warmup_steps=40, placement=placement
    )
    shares = [sum(map(optimizer.kept, range(t + 1, t + 11))) / 1e6 for t in (0, 10, 20, 30, 40, 50)]
    assert shares == pytest.approx([0.251, 0.0631, 0.01585, 0.00398, 0.001, 0.001], rel=0.01)


def test_dgc_warms_up_as_specified() -> None:
    """What is sent of a step's gradients in the warm-up is the largest of them, too."""
    optimizer: Any = build("dgc", 3, ratio=4, warmup_steps=8)
    kept = [optimizer.kept(t) for t in range(1, STEPS + 1)]
    assert kept[0] > kept[5] > kept[-1]
    specified = dgc(start(3), logistic(3), lambda t: kept[t - 1], dropping, 0.9, 0.0)
    for x, (expected, v) in zip(trajectory(optimizer, logistic(3), lr=dropping), specified, strict=False):
        assert distance(x, expected) < 1e-13
        assert distance(optimizer.v.view(3, D), v) < 1e-12


def test_dgc_clips_each_workers_gradient() -> None:
    """To clip_norm / sqrt(n), before momentum; a shorter one is left."""

    def clipped(x: Tensor, t: int) -> Tensor:
        g = logistic(3)(x, t)
        norm = g.norm(dim=-1, keepdim=True)
        shorter = 5 / 3**0.5 / norm
        lengths.extend(norm.flatten().tolist())
        return torch.where(shorter < 1, g * shorter, g)

    lengths: list[float] = []
    one = trajectory(build("dgc", 3, ratio=1.6, clip_norm=5.0), logistic(3))
    other = trajectory(build("dgc", 3, ratio=1.6), clipped)
    assert all(distance(x, y) < 1e-13 for x, y in zip(one, other, strict=True))
    assert min(lengths) < 5 / 3**0.5 < max(lengths), "some are clipped, and some are not"


def test_dgc_steps_each_group_at_its_own_rate() -> None:
    """What is sent is chosen among all coordinates; each is stepped with its group's rate."""
    optimizer = build("dgc", 3, ratio=1.6, second_group={"lr": LR / 4})
    rates = torch.tensor([LR] * 6 + [LR / 4] * 5, dtype=torch.float64)
    specified = dgc(start(3), logistic(3), so_many(3), lambda t: rates, 0.9, 0.0)  # type: ignore[arg-type, return-value]
    for x, (expected, _) in zip(trajectory(optimizer, logistic(3)), specified, strict=False):
        assert distance(x, expected) < 1e-13


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        ({"ratio": 0.5}, "needs a finite ratio >= 1, not 0.5"),
        ({"ratio": 4, "warmup_steps": 1.5}, "The warm-up is a whole number of steps >= 0, not 1.5"),
        ({"ratio": 4, "clip_norm": 0.0}, "clip_norm is the largest 2-norm of a gradient, > 0, not 0.0"),
        ({"ratio": 4, "betas": (0.9, 0.99)}, "not that of AdamW: take another method"),
    ],
)
def test_bad_arguments_are_refused(bad: dict[str, Any], said: str) -> None:
    """With the value and the rule, in one sentence."""
    with pytest.raises(ValueError, match=said) as caught:
        build("dgc", 3, **bad)
    assert "\n" not in str(caught.value)
