"""Models that vmap cannot express, or expresses wrongly, take turns by themselves; a model that fails says where."""

import copy
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cser_ray.errors import ModelError
from cser_ray.tasks.base import losses
from cser_ray.virtual import GradientStep, VirtualWorkers, Way, evaluate_rows

ROWS, BATCH, TIME, WIDTH, CLASSES = 3, 5, 4, 3, 2


class Recurrent(nn.Module):
    """A cell of torch's over a sequence."""

    def __init__(self, cell: Any):
        super().__init__()
        self.cell, self.head = cell(WIDTH, 4, batch_first=True), nn.Linear(4, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return torch.as_tensor(self.head(self.cell(x)[0][:, -1]))


class OnLast(nn.Module):
    """A layer on the last element of a sequence."""

    def __init__(self, wrap: Callable[[nn.Module], nn.Module] = lambda layer: layer) -> None:
        super().__init__()
        self.layer = wrap(nn.Linear(WIDTH, CLASSES))

    def forward(self, x: Tensor) -> Tensor:
        return torch.as_tensor(self.layer(x[:, -1]))


class Sine(torch.autograd.Function):
    """As people write it: with a context, for which vmap has no rule."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.sin()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return grads[0] * x.cos()


class WrongRule(torch.autograd.Function):
    """A doubling whose rule for vmap forgets to double."""

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return 2 * x

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        """Nothing is saved."""

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return 2 * grads[0]

    @staticmethod
    def vmap(info: Any, in_dims: Any, x: Tensor) -> tuple[Tensor, int]:
        return x.movedim(in_dims[0], 0), 0


class With(OnLast):
    """A layer and what follows it."""

    def __init__(self, after: Callable[[Tensor], Tensor]):
        super().__init__()
        self.after = after

    def forward(self, x: Tensor) -> Tensor:
        return self.after(super().forward(x))


class Keeping(OnLast):
    """Adds to its outputs what it has seen so far, in a tensor that is no buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = torch.zeros(CLASSES, dtype=torch.float64)

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        self.seen.add_(y.detach().mean(0))
        return y + self.seen


class Reading(OnLast):
    """Looks whether it is under vmap, and raises there what vmap itself never would: any error has to lead to the loop."""

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        if torch._C._functorch.is_batchedtensor(y):
            raise ArithmeticError("this model is never batched")
        return y


MODELS: dict[str, Callable[[], nn.Module]] = {
    "lstm": lambda: Recurrent(nn.LSTM),
    "gru": lambda: Recurrent(nn.GRU),
    "spectral norm": lambda: OnLast(nn.utils.parametrizations.spectral_norm),
    "spectral norm by hooks": lambda: OnLast(nn.utils.spectral_norm),  # type: ignore[arg-type]
    "autograd function": lambda: With(Sine.apply),  # type: ignore[arg-type]
    "wrong rule": lambda: With(WrongRule.apply),  # type: ignore[arg-type]
    "item": lambda: With(lambda y: y * (1 + (float(y.detach().sum().item()) > 0))),
    "control flow": lambda: With(lambda y: y if y.sum() > 0 else 3 * y),
    "kept tensor": Keeping,
    "another error": Reading,
}


def modules(make: Callable[[], nn.Module]) -> list[nn.Module]:
    made = []
    for row in range(ROWS):
        torch.manual_seed(row)
        made.append(make().double())
    return made


def batch(step: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(step)
    inputs = torch.randn(ROWS, BATCH, TIME, WIDTH, dtype=torch.float64, generator=generator)
    return inputs, torch.randint(CLASSES, (ROWS, BATCH), generator=generator)


@pytest.mark.parametrize("way", ["vmap", "record"])
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.filterwarnings("ignore::cser_ray.errors.CserWarning", "ignore:.*deprecated:FutureWarning")
def test_rows_are_separate_modules(name: str, way: Way) -> None:
    """Losses, gradients, parameters and buffers after three steps are those of modules trained apart, to rounding."""
    alone, workers = modules(MODELS[name]), VirtualWorkers(modules(MODELS[name]))
    step = GradientStep(workers, losses, way)
    for number in range(3):
        inputs, targets = batch(number)
        for p in workers.trained:
            p.grad = torch.zeros_like(p)
        found = step(inputs, targets)
        for row, module in enumerate(alone):
            module.zero_grad()
            loss = nn.functional.cross_entropy(module(inputs[row]), targets[row])
            loss.backward()  # type: ignore[no-untyped-call]
            torch.testing.assert_close(found[row], loss.detach(), rtol=1e-12, atol=1e-12)
            for key, p in module.named_parameters():
                assert p.grad is not None
                ours = workers.parameters[key].grad
                assert ours is not None
                torch.testing.assert_close(ours[row], p.grad, rtol=1e-10, atol=1e-12)
        with torch.no_grad():
            for p in [*workers.trained, *(p for module in alone for p in module.parameters())]:
                assert p.grad is not None
                p -= 0.1 * p.grad
    assert workers.looped
    for row, module in enumerate(alone):
        for key, buffer in module.named_buffers():
            torch.testing.assert_close(workers.buffers[key][row], buffer, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", ["lstm", "spectral norm", "wrong rule", "item"])
def test_evaluation_is_a_plain_modules(name: str) -> None:
    """Also where vmap would run and be wrong: what training found out counts."""
    workers, plain = VirtualWorkers(modules(MODELS[name])), modules(MODELS[name])
    inputs, _ = batch(0)
    workers.refusal(inputs)
    outputs = evaluate_rows(
        workers.module, workers.parameters, workers.buffers, inputs[0], workers.batched is not False
    )
    expected = torch.stack([module.eval()(inputs[0]) for module in plain])
    torch.testing.assert_close(outputs, expected.detach(), rtol=1e-12, atol=1e-12)


def test_a_try_leaves_no_trace() -> None:
    """Buffers, generators and the rows' Python state are as before, whether vmap can or not."""
    for make in (
        MODELS["kept tensor"],
        MODELS["spectral norm"],
        lambda: nn.Sequential(nn.Flatten(), nn.BatchNorm1d(12)),
    ):
        workers = VirtualWorkers(modules(make))
        before = copy.deepcopy((workers.buffers, workers.generator_states, [workers.skeleton(r) for r in range(ROWS)]))
        workers.refusal(batch(0)[0])
        torch.testing.assert_close((workers.buffers, workers.generator_states), before[:2], rtol=0, atol=0)
        for row in range(ROWS):
            seen = getattr(workers.skeleton(row), "seen", torch.zeros(1))
            assert torch.equal(seen, getattr(before[2][row], "seen", torch.zeros(1)))


def test_what_vmap_can_do_is_not_looped() -> None:
    """Plain layers with BatchNorm and dropout, of which gradients of biases are nothing but rounding."""
    make = lambda: nn.Sequential(nn.Flatten(), nn.Linear(12, 6), nn.BatchNorm1d(6), nn.Dropout(), nn.Linear(6, 2))  # noqa: E731
    workers = VirtualWorkers([module.float() for module in modules(make)])
    assert workers.refusal(batch(0)[0].float()) is None


class Failing(OnLast):
    """Wrong in a way of the user's."""

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        return y @ torch.ones(7, 7, dtype=y.dtype)  # the line to be named


@pytest.mark.parametrize("way", ["vmap", "loop", "record"])
def test_a_failing_model_is_one_sentence(way: Way) -> None:
    """With the kind and the words of the true error, its file and its line; the error itself is chained."""
    step = GradientStep(VirtualWorkers(modules(Failing)), losses, way)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(ModelError, match=r"^The model failed: RuntimeError \(.*cannot be multiplied") as raised:
            step(*batch(0))
    line = next(
        k for k, text in enumerate(Path(__file__).read_text().splitlines(), 1) if "the line to be named" in text
    )
    assert str(raised.value).endswith(f"at {__file__}:{line} in forward")
    assert "\n" not in str(raised.value)
    assert isinstance(raised.value.__cause__, RuntimeError)


def test_a_failing_loss_and_backward_pass_say_so() -> None:
    """They are the user's as well."""

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        raise KeyError("labels")

    with pytest.raises(
        ModelError, match=r"^The loss failed: KeyError \('labels'\), at .*test_batching.py:\d+ in loss$"
    ):
        GradientStep(VirtualWorkers(modules(OnLast)), loss, "vmap")(*batch(0))

    class Bad(Sine):
        @staticmethod
        def backward(ctx: Any, *grads: Tensor) -> Tensor:
            raise ArithmeticError("no derivative")

    failing = VirtualWorkers(modules(lambda: With(Bad.apply)))  # type: ignore[arg-type]
    with pytest.raises(ModelError, match=r"^The backward pass of the model failed: ArithmeticError"):
        GradientStep(failing, losses, "vmap")(*batch(0))


def test_rows_keep_no_parameters_but_the_stacked_ones() -> None:
    """A skeleton has its own Python state and the first module's tensors: the modules of other seeds can go."""
    made = modules(Keeping)
    workers = VirtualWorkers(made)
    kept = [workers.skeleton(row) for row in range(ROWS)]
    assert all(module.layer.weight is made[0].layer.weight for module in kept)  # type: ignore[union-attr]
    assert len({id(module.seen) for module in kept}) == ROWS
