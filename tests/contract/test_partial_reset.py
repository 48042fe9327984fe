"""The recursion: its general form is its specification at random points, and its poles are the methods of the papers."""

import copy
import itertools
import random
from typing import Any

import pytest
import torch
from torch import Tensor

from cser_ray.compressors import GRBS, Compressor, Identity, SharedCompressor, TopK, Zero
from cser_ray.optimizers import CSER, DiLoCo, PartialReset, QSparseLocalSGD
from cser_ray.optimizers.forms.feedback import Feedback
from cser_ray.optimizers.forms.general import General
from cser_ray.optimizers.forms.with_error import WithError
from cser_ray.recursion import recursion
from cser_ray.seeds import Purpose
from tests.contract.laws import mean_recursion
from tests.stacked import (
    COMPRESSOR_EXAMPLES,
    LR,
    D,
    build,
    compressed,
    distance,
    logistic,
    models,
    start,
    take_step,
    trajectory,
)

POINTS = range(24)
OUTERS = ((1.0, 0.0), (0.7, 0.9), (0.4, 0.0))


def drawn(seed: int) -> tuple[int, dict[str, Any]]:
    """A random point of the space: (n, the optimizer's arguments)."""
    draw = random.Random(seed)
    outer = draw.choice(OUTERS)
    arguments = {
        "residual_in_model": draw.choice([0.0, 0.25, 0.5, draw.random(), 1.0]),
        "error_decay": draw.choice([1.0, 1.0, 0.95, 0.5]),
        "outer_lr": outer[0],
        "outer_momentum": outer[1],
        "reset_interval": draw.choice([1, 2, 3, 5]),
        "reset_delay": draw.choice([0, 0, 1, 2, 3, 7]),
        "reset_compressor": draw.choice(list(COMPRESSOR_EXAMPLES.values())),
        "gradient_compressor": draw.choice([Zero(), Zero(), GRBS(2), TopK(3)]),
        "momentum": draw.choice([0.0, 0.9]),
    }
    return draw.choice([1, 2, 3]), arguments


def places_of(c1: Compressor) -> Any:
    """The coordinates of its calls as masks, where all workers send the same ones."""
    if not isinstance(c1, SharedCompressor):
        return None
    keyed = c1.with_streams((0,), Purpose.RESET_BLOCKS, range(1))

    def mask(call: int) -> Tensor:
        at = torch.zeros(D, dtype=torch.float64)
        coordinates = keyed.select(torch.zeros(1, D, dtype=torch.float64), call).coordinates(at.view(1, D))
        return at.index_fill(0, coordinates.flatten(), 1.0)

    return mask


def specified(n: int, a: dict[str, Any]) -> Any:
    return recursion(
        start(n),
        logistic(n),
        compressed(a["reset_compressor"], Purpose.RESET_BLOCKS, n),
        compressed(a["gradient_compressor"], Purpose.GRADIENT_BLOCKS, n),
        a["reset_interval"],
        LR,
        a["momentum"],
        gamma=a["residual_in_model"],
        rho=a["error_decay"],
        outer=(a["outer_lr"], a["outer_momentum"]),
        delay=a["reset_delay"],
        places=places_of(a["reset_compressor"]),
    )


def general(n: int, arguments: dict[str, Any]) -> PartialReset:
    """The optimizer at a point, run by the general form also where a cheaper one would do."""
    optimizer = build(PartialReset, n, **arguments)
    assert isinstance(optimizer, PartialReset)
    outer = optimizer.outer_lr, optimizer.outer_momentum
    optimizer.form = General(
        optimizer.reset_compressor, optimizer.gradient_compressor, optimizer.reset_interval,
        optimizer.residual_in_model, optimizer.error_decay, outer, optimizer.reset_delay, optimizer.x,
    )  # fmt: skip
    return optimizer


def aside(optimizer: PartialReset) -> Tensor:
    """a `[n, d]`."""
    assert isinstance(optimizer.form, General)
    zeros = torch.zeros(1, optimizer.communicator.size, D, dtype=torch.float64)
    return (zeros if optimizer.form.a is None else optimizer.form.a[..., :D]).view(-1, D)


@pytest.mark.parametrize("seed", POINTS)
def test_the_general_form_is_the_recursion(seed: int) -> None:
    """Models and what waits aside, at a random point of the space."""
    n, arguments = drawn(seed)
    optimizer = general(n, arguments)
    for x, (x_specified, a) in zip(trajectory(optimizer, logistic(n)), specified(n, arguments), strict=False):
        assert distance(x, x_specified) < 1e-12
        assert distance(aside(optimizer), a) < 1e-12


@pytest.mark.parametrize("seed", POINTS)
def test_whichever_form_runs_is_the_recursion(seed: int) -> None:
    """Also where the class takes a cheaper form than the general one."""
    n, arguments = drawn(seed)
    optimizer = build(PartialReset, n, **arguments)
    for x, (x_specified, _) in zip(trajectory(optimizer, logistic(n)), specified(n, arguments), strict=False):
        assert distance(x, x_specified) < 1e-12


@pytest.mark.parametrize("seed", POINTS)
def test_nothing_is_lost(seed: int) -> None:
    """mean(x + a) follows the local step's own recursion, whatever is sent, shared, or late: no outer step, no decay."""
    n, arguments = drawn(seed)
    optimizer = general(n, arguments | {"outer_lr": 1.0, "outer_momentum": 0.0, "error_decay": 1.0})
    assert mean_recursion(optimizer, lambda o: models(o).mean(0) + aside(o).mean(0)) < 1e-13


@pytest.mark.parametrize("seed", POINTS)
def test_models_are_common_but_for_the_share(seed: int) -> None:
    """Right after a message, x_i - gamma e_i is the same on all workers; with gamma = 1, e_i is the distance to c."""
    n, arguments = drawn(seed)
    gamma = arguments["residual_in_model"]
    if gamma == 1:
        return
    optimizer = general(n, arguments | {"reset_delay": 0})
    for x in trajectory(optimizer, logistic(n)):
        if optimizer.t % optimizer.reset_interval == 0:
            common = x - gamma / (1 - gamma) * aside(optimizer)
            assert distance(common, common[:1].expand_as(common)) < 1e-13


OPTIONS = [dict(zip(("reset_delay", "momentum"), pair, strict=True)) for pair in itertools.product((0, 2), (0.0, 0.9))]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("name", [name for name in COMPRESSOR_EXAMPLES if not name.endswith("int2")])
def test_all_of_the_residual_in_the_model_is_error_reset(name: str, options: dict[str, Any]) -> None:
    """gamma = 1 is CSER, bit for bit, and the general form is it too, to rounding.

    Not in two bits: on which side of the border between two magnitudes a value lies, a last bit may decide.
    """
    c1, c2 = COMPRESSOR_EXAMPLES[name], GRBS(2)
    own = {"reset_interval": 3, "reset_compressor": c1, "gradient_compressor": c2, **options}
    cser = list(trajectory(build(CSER, 3, **own), logistic(3)))
    point = list(trajectory(build(PartialReset, 3, residual_in_model=1.0, **own), logistic(3)))
    assert all(torch.equal(x, y) for x, y in zip(cser, point, strict=True))
    for x, y in zip(cser, trajectory(general(3, {"residual_in_model": 1.0, **own}), logistic(3)), strict=True):
        assert distance(x, y) < 1e-13


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("name", COMPRESSOR_EXAMPLES)
def test_none_of_the_residual_in_the_model_is_error_feedback(name: str, momentum: float) -> None:
    """gamma = 0 is QSparse-local-SGD, bit for bit where anything is left behind, and the general form to rounding."""
    own = {"reset_interval": 3, "reset_compressor": COMPRESSOR_EXAMPLES[name], "momentum": momentum}
    qsparse = list(trajectory(build(QSparseLocalSGD, 3, **own), logistic(3)))
    point = build(PartialReset, 3, residual_in_model=0.0, **own)
    for x, y in zip(qsparse, trajectory(point, logistic(3)), strict=True):
        assert torch.equal(x, y) if isinstance(point.form, Feedback) else distance(x, y) < 1e-13
    for x, y in zip(qsparse, trajectory(general(3, {"residual_in_model": 0.0, **own}), logistic(3)), strict=True):
        assert distance(x, y) < 1e-13


@pytest.mark.parametrize("gamma", [0.0, 0.3, 1.0])
def test_an_outer_step_on_whole_models_is_diloco(gamma: float) -> None:
    """Bit for bit, whatever gamma: the identity leaves no residual."""
    outer = {"outer_lr": 0.7, "outer_momentum": 0.9, "reset_interval": 3}
    diloco = trajectory(build(DiLoCo, 3, **outer), logistic(3))
    own = {"reset_compressor": Identity(), "residual_in_model": gamma, **outer}
    point = trajectory(build(PartialReset, 3, **own), logistic(3))
    assert all(torch.equal(x, y) for x, y in zip(diloco, point, strict=True))


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("until", [1, 4, 6, 7])
def test_a_state_goes_on_where_it_was_saved(seed: int, until: int) -> None:
    """In mid-interval and while messages are under way, bit for bit."""
    n, arguments = drawn(seed)
    optimizer, again = general(n, arguments), general(n, arguments)
    for _ in range(until):
        take_step(optimizer, logistic(n))
    state, x = copy.deepcopy(optimizer.state_dict()), optimizer.x.clone()
    again.x.copy_(x)
    again.load_state_dict(state)
    for _ in range(8):
        take_step(optimizer, logistic(n))
        take_step(again, logistic(n))
    assert torch.equal(models(optimizer), models(again))


def test_what_it_keeps() -> None:
    """Beyond the local step: a row a worker of what waits, one row of c, and one of v where the outer step has momentum."""
    for gamma, outer, workers, common in (
        (0.5, 0.0, {"aside"}, {"common"}),
        (0.5, 0.9, {"aside"}, {"common", "outer_momentum"}),
        (1.0, 0.9, set(), {"common", "outer_momentum"}),
    ):
        own = {"residual_in_model": gamma, "outer_momentum": outer, "reset_compressor": GRBS(4), "momentum": 0.0}
        optimizer = build(PartialReset, 3, **own)
        assert (optimizer.buffers().keys(), optimizer.common_buffers().keys()) == (workers, common)
        assert all(b.shape[-2] == 1 for b in optimizer.common_buffers().values())


def test_forms_are_chosen_by_the_point() -> None:
    """The cheapest that is the recursion there."""
    kinds = [
        type(build(PartialReset, 2, reset_compressor=TopK(3), **own).form)
        for own in (
            {"residual_in_model": 1.0},
            {"residual_in_model": 0.0},
            {"residual_in_model": 0.0, "error_decay": 0.9},
            {"residual_in_model": 0.5},
            {"residual_in_model": 1.0, "outer_lr": 0.5},
        )
    ]
    assert kinds == [WithError, Feedback, General, General, General]


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"residual_in_model": 1.5}, r"residual_in_model is a share, in \[0, 1\], not 1.5"),
        ({"residual_in_model": float("nan")}, "residual_in_model is a share"),
        ({"residual_in_model": 0.5, "error_decay": -0.1}, "error_decay is a share"),
        ({"residual_in_model": 0.5, "outer_lr": 0.0}, "outer_lr > 0"),
        ({"residual_in_model": 0.5, "outer_momentum": 1.0}, "outer_momentum < 1"),
        ({"residual_in_model": 0.5, "implementation": "II"}, "are error reset's"),
        ({"residual_in_model": 0.5, "overlap": True}, "are error reset's"),
        ({"residual_in_model": 0.5, "reset_delay": 1.5}, "whole number of steps"),
    ],
)
def test_what_it_cannot_be_is_refused(wrong: dict[str, Any], words: str) -> None:
    """In a sentence that says the rule."""
    with pytest.raises(ValueError, match=words):
        build(PartialReset, 2, **wrong)
