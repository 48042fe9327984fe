"""torch's functions inside a row: what dropout drops, attention, and normalisation that vmap has no rule for."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import vmap

from cser_ray.errors import CserWarning
from cser_ray.tasks.base import losses
from cser_ray.virtual import GradientStep, VirtualWorkers
from cser_ray.virtual.dropout import RowDraws, row_key
from cser_ray.virtual.forward import at_once
from cser_ray.virtual.normalisation import BatchNormRows, GroupNormRows

ROWS = 3


def both_ways(make: Callable[[], nn.Module], inputs: Tensor) -> tuple[Tensor, Tensor]:
    """Outputs of all rows at once, as a record computes them, and of rows in turn."""
    torch.manual_seed(0)
    workers = VirtualWorkers([make().double() for _ in range(ROWS)], seeds=[5, 6, 7])
    together = at_once(
        workers.module, workers.parameters, workers.buffers, inputs, workers.keys, workers.step, recorded=True
    )
    workers.looped = True
    return together, workers(inputs)


def masks(p: float, size: int = 200_000) -> Tensor:
    """What is kept and scaled of ones, [2 rows, 2 steps, 2 calls, size]."""
    kept = []
    for row in range(2):
        for step in range(2):
            draws = RowDraws(torch.tensor(row_key(row)), torch.tensor(step))
            kept += [draws.dropped(torch.ones(size), p, (size,)) for _ in range(2)]
    return torch.stack(kept)


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_dropout_drops_a_share_of_p_and_keeps_the_mean(p: float) -> None:
    """Within five standard deviations, in every row, step and call; what is kept is scaled by 1 / (1 - p)."""
    found = masks(p)
    share = (found == 0).double().mean(1)
    assert float((share - p).abs().max()) < 5 * (p * (1 - p) / found.shape[1]) ** 0.5
    torch.testing.assert_close(found.unique(), torch.tensor([0, 1 / (1 - p)]))


def test_rows_steps_and_calls_drop_independently() -> None:
    """No two of the eight masks are correlated, at no shift of up to 3 places."""
    centred = (masks(0.5) - 1).double()
    for shift in range(-3, 4):
        correlation = centred @ centred.roll(shift, 1).T / centred.shape[1]
        if shift == 0:
            correlation = correlation - torch.eye(8)
        assert float(correlation.abs().max()) < 5 / centred.shape[1] ** 0.5


def test_certain_dropout() -> None:
    """p = 1 leaves nothing, p = 0 everything."""
    draws = RowDraws(torch.tensor(1), torch.tensor(0))
    assert torch.equal(draws.dropped(torch.ones(5), 1.0, (5,)), torch.zeros(5))
    assert torch.equal(draws.dropped(torch.ones(5), 0.0, (5,)), torch.ones(5))


@pytest.mark.parametrize(
    ("make", "shape"),
    [
        (lambda: nn.Dropout1d(0.5), (4, 6, 3)),
        (lambda: nn.Dropout2d(0.5), (4, 6, 3, 2)),
        (lambda: nn.Dropout3d(0.5), (4, 6, 3, 2, 2)),
    ],
    ids=["1d", "2d", "3d"],
)
def test_channels_are_dropped_whole(make: Callable[[], nn.Module], shape: tuple[int, ...]) -> None:
    """Every value of a channel shares its lot, as in torch; some are dropped and some not."""
    linear = nn.Sequential(make(), nn.Linear(shape[-1], shape[-1]))
    nn.init.eye_(linear[1].weight)  # type: ignore[arg-type]
    nn.init.zeros_(linear[1].bias)  # type: ignore[arg-type]
    workers = VirtualWorkers([linear] * ROWS, seeds=[5, 6, 7])
    outputs = workers(torch.ones(ROWS, *shape)).flatten(3)
    assert not workers.looped
    assert torch.equal(outputs, outputs[..., :1].expand_as(outputs))
    assert outputs[..., 0].unique().tolist() == [0, 2]


class Attending(nn.Module):
    """A projection and torch's fused attention."""

    def __init__(self, mask: Tensor | None = None, **options: float) -> None:
        super().__init__()
        self.mask, self.options = mask, options
        self.qkv = nn.Linear(4, 12)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, -1)
        return F.scaled_dot_product_attention(q, k, v, self.mask, **self.options)  # type: ignore[arg-type]


SOME = torch.ones(5, 5).tril(1)
ATTENTIONS: dict[str, Callable[[], nn.Module]] = {
    "plain": Attending,
    "scaled": lambda: Attending(scale=0.3),
    "causal": lambda: Attending(is_causal=True),
    "boolean mask": lambda: Attending(SOME.bool()),
    "additive mask": lambda: Attending(SOME.double()),
    "dropout": lambda: Attending(dropout_p=0.5),
}


@pytest.mark.parametrize("name", ATTENTIONS)
@pytest.mark.filterwarnings("error")
def test_attention(name: str) -> None:
    """All rows at once give what rows in turn give, without vmap's warning that it loops."""
    found, expected = both_ways(ATTENTIONS[name], torch.randn(ROWS, 2, 5, 4, dtype=torch.float64))
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("shape", [(5,), (2, 5), (2, 3, 5)])
def test_linear_layers_take_any_axes(shape: tuple[int, ...]) -> None:
    """One sample, a batch, or a batch of sequences a row."""
    found, expected = both_ways(lambda: nn.Linear(5, 4), torch.randn(ROWS, *shape, dtype=torch.float64))
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


def test_what_belongs_to_no_row_is_not_recorded() -> None:
    """A linear layer of constants on constants has no axis of rows; the eager step computes it."""

    class Constant(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(5, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(x) + F.linear(torch.ones(1, 2).double(), torch.ones(2, 2).double())  # type: ignore[no-any-return]

    step = GradientStep(VirtualWorkers([Constant().double()] * ROWS), losses, "record")
    with pytest.warns(CserWarning, match="no operand with an axis of rows"):
        found = step(torch.randn(ROWS, 4, 5, dtype=torch.float64), torch.zeros(ROWS, 4, dtype=torch.int64))
    assert step.way == "vmap"
    assert found.shape == (ROWS,)


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("shape", [(4, 6), (4, 6, 3), (4, 6, 3, 2)], ids=["1d", "sequence", "images"])
@pytest.mark.parametrize("kind", ["batch", "group"])
def test_normalisation_of_rows(kind: str, shape: tuple[int, ...], affine: bool) -> None:
    """Outputs, gradients and running statistics are those of torch's own functions on each row."""
    torch.manual_seed(0)
    channels = shape[1]
    x, g = (torch.randn(ROWS, *shape, dtype=torch.float64) for _ in range(2))
    weight, bias = (torch.randn(ROWS, channels, dtype=torch.float64) if affine else None for _ in range(2))
    mean, var = torch.randn(ROWS, channels, dtype=torch.float64), torch.rand(ROWS, channels, dtype=torch.float64)
    means, variances = mean.clone(), var.clone()
    leaves = [t.requires_grad_() for t in (x, weight, bias) if t is not None]

    def one(x: Tensor, mean: Tensor, var: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        if kind == "batch":
            return BatchNormRows.apply(x, mean, var, weight, bias, 0.2, 1e-3)  # type: ignore[no-any-return]
        return GroupNormRows.apply(x, 2, weight, bias, 1e-3)  # type: ignore[no-any-return]

    own = 0 if affine else None
    found = vmap(one, in_dims=(0, 0, 0, own, own))(x, mean, var, weight, bias)
    found_gradients = torch.autograd.grad(found, leaves, g)
    expected = []
    for row in range(ROWS):
        w, b = (None if t is None else t[row] for t in (weight, bias))
        if kind == "batch":
            expected.append(F.batch_norm(x[row], means[row], variances[row], w, b, True, 0.2, 1e-3))
        else:
            expected.append(F.group_norm(x[row], 2, w, b, 1e-3))
    torch.testing.assert_close(found, torch.stack(expected))
    torch.testing.assert_close(found_gradients, torch.autograd.grad(torch.stack(expected), leaves, g))
    torch.testing.assert_close((mean, var), (means, variances))
