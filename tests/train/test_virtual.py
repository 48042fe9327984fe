"""Virtual workers: rows of one module that behave as so many plain modules."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from cser_ray.errors import ModelError
from cser_ray.tasks.mlp import batchnorm_mlp
from cser_ray.virtual import VirtualWorkers, backward, batch_statistics, evaluate_rows, forward_rows, has_batchnorm

ROWS, BATCH = 3, 6


def mlp() -> nn.Module:
    """With BatchNorm."""
    return batchnorm_mlp(5, 4, 4, 2).double()


def with_dropout() -> nn.Module:
    """With BatchNorm and dropout."""
    return nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 2)).double()


class Noise(nn.Module):
    """Noise from torch's generator, which vmap does not share out."""

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.randn_like(x) if self.training else x


def with_noise() -> nn.Module:
    """With BatchNorm and noise."""
    return nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), Noise(), nn.Linear(4, 2)).double()


class Branching(nn.Module):
    """A model whose path depends on its values, which vmap cannot express."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.head = nn.BatchNorm1d(5), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(self.norm(x))
        return y if y.sum().item() > 0 else 2 * y


def modules(make: Callable[[], nn.Module], rows: int = ROWS) -> list[nn.Module]:
    """Differently initialised ones."""
    made = []
    for row in range(rows):
        torch.manual_seed(row)
        made.append(make())
    return made


def inputs(rows: int = ROWS, step: int = 0) -> Tensor:
    """The first `rows` of the rows' batches."""
    generator = torch.Generator().manual_seed(100 + step)
    return torch.randn(8, BATCH, 5, generator=generator, dtype=torch.float64)[:rows] + 1


def two_steps(make: Callable[[], nn.Module], loop: bool) -> VirtualWorkers:
    """Rows after two forward passes and backward passes of the sum of squares."""
    workers = VirtualWorkers(modules(make))
    workers.looped = loop
    for step in range(2):
        backward(workers(inputs(step=step)).square().sum())
    return workers


def states(workers: VirtualWorkers, row: int) -> dict[str, Tensor]:
    """A row's buffers and gradients."""
    gradients = {f"grad {name}": p.grad[row] for name, p in workers.parameters.items() if p.grad is not None}
    return gradients | {name: buffer[row] for name, buffer in workers.buffers.items()}


@pytest.mark.parametrize("loop", [False, True], ids=["vmap", "loop"])
@pytest.mark.parametrize("make", [mlp, lambda: nn.Linear(5, 2).double()], ids=["batchnorm", "linear"])
def test_a_row_is_a_plain_module(make: Callable[[], nn.Module], loop: bool) -> None:
    """Gradients and BatchNorm's running statistics of each row are those of its module by itself."""
    workers = two_steps(make, loop)
    for row, module in enumerate(modules(make)):
        for step in range(2):
            module(inputs(step=step)[row]).square().sum().backward()
        expected = {f"grad {name}": p.grad for name, p in module.named_parameters()} | dict(module.named_buffers())
        torch.testing.assert_close(states(workers, row), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("loop", [False, True], ids=["vmap", "loop"])
def test_outputs_are_the_modules(loop: bool) -> None:
    """[rows, b, classes], each row from its own parameters."""
    workers = VirtualWorkers(modules(mlp))
    workers.looped = loop
    expected = torch.stack([module(x) for module, x in zip(modules(mlp), inputs(), strict=True)])
    torch.testing.assert_close(workers(inputs()), expected, rtol=1e-12, atol=1e-12)


def test_small_models_take_vmap_and_large_ones_the_loop() -> None:
    """On a CPU the number of parameters decides; a single row needs neither."""
    assert not VirtualWorkers(modules(mlp)).looped
    assert VirtualWorkers(modules(mlp, rows=1)).looped
    assert VirtualWorkers([nn.Linear(200, 200)] * 2).looped


def test_the_first_modules_own_state_is_left_alone() -> None:
    """The skeleton is run with the rows' parameters and buffers, never with its own."""
    first = modules(mlp, rows=1)[0]
    before = copy.deepcopy(first.state_dict())
    workers = VirtualWorkers([first, *modules(mlp)[1:]])
    backward(workers(inputs()).square().sum())
    evaluate_rows(first, workers.parameters, workers.buffers, inputs()[0])
    batch_statistics(first, workers.parameters, workers.buffers, inputs())
    torch.testing.assert_close(first.state_dict(), before, rtol=0, atol=0)


@pytest.mark.parametrize("make", [with_noise, lambda: Branching().double()], ids=["noise", "branching"])
def test_what_vmap_cannot_do_is_looped(make: Callable[[], nn.Module]) -> None:
    """A failed try at vmap leaves no trace: BatchNorm has counted one batch, with its statistics taken once."""
    workers = VirtualWorkers(modules(make), seeds=range(ROWS))
    assert not workers.looped
    workers(inputs())
    assert workers.looped
    name = next(name for name in workers.buffers if name.endswith("num_batches_tracked"))
    assert workers.buffers[name].tolist() == [1] * ROWS
    loop = VirtualWorkers(modules(make), seeds=range(ROWS))
    loop.looped = True
    loop(inputs())
    torch.testing.assert_close(workers.buffers, loop.buffers, rtol=0, atol=0)


@pytest.mark.parametrize("loop", [False, True], ids=["vmap", "loop"])
@pytest.mark.parametrize("make", [with_dropout, with_noise], ids=["dropout", "noise"])
def test_a_rows_random_numbers_do_not_depend_on_the_others(make: Callable[[], nn.Module], loop: bool) -> None:
    """Alone, or among other rows, a row drops the same units and adds the same noise, step after step."""
    together = VirtualWorkers(modules(make), seeds=[5, 6, 7])
    together.looped = loop
    alone = VirtualWorkers(modules(make)[1:2], seeds=[6])
    for step in range(3):
        found, expected = together(inputs(step=step))[1], alone(inputs(step=step)[1:2])[0]
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("loop", [False, True], ids=["vmap", "loop"])
@pytest.mark.parametrize("make", [with_dropout, with_noise], ids=["dropout", "noise"])
def test_random_numbers_differ_between_rows_and_between_steps(make: Callable[[], nn.Module], loop: bool) -> None:
    """The same module and batch under two seeds give two results, and under one seed another one at the next step."""
    workers = VirtualWorkers(modules(make, rows=1) * 2, seeds=[5, 6])
    workers.looped = loop
    batch = inputs(rows=1).expand(2, BATCH, 5)
    first, second = workers(batch), workers(batch)
    assert not torch.allclose(first[0], first[1])
    assert not torch.allclose(first[0], second[0])


@pytest.mark.parametrize("make", [with_dropout, with_noise], ids=["dropout", "noise"])
def test_random_numbers_leave_the_global_generator_alone(make: Callable[[], nn.Module]) -> None:
    """What a caller draws next does not depend on the workers in between."""
    workers = VirtualWorkers(modules(make), seeds=[5, 6, 7])
    workers(inputs())  # the first call also tries vmap
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    workers(inputs())
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize(
    "make", [mlp, with_dropout, lambda: Branching().double()], ids=["batchnorm", "dropout", "branching"]
)
@pytest.mark.parametrize("rows", [1, ROWS])
def test_evaluation_is_a_plain_modules(make: Callable[[], nn.Module], rows: int) -> None:
    """Every row sees the same samples in evaluation mode: no dropout, running statistics used and not changed."""
    workers = VirtualWorkers(modules(make, rows))
    batch, plain = inputs()[0], modules(make, rows)
    for module, x in zip([*plain, workers], [*inputs(rows), inputs(rows)], strict=True):
        torch.manual_seed(0)
        module(x)
    before = copy.deepcopy(workers.buffers)
    outputs = evaluate_rows(workers.module, workers.parameters, workers.buffers, batch)
    expected = torch.stack([module.eval()(batch) for module in plain])
    torch.testing.assert_close(outputs, expected.detach(), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(workers.buffers, before, rtol=0, atol=0)


def test_training_goes_on_in_training_mode_after_an_evaluation() -> None:
    """Evaluation borrows the skeleton and its mode."""
    workers, undisturbed = VirtualWorkers(modules(mlp)), VirtualWorkers(modules(mlp))
    evaluate_rows(workers.module, workers.parameters, workers.buffers, inputs()[0])
    assert torch.equal(workers(inputs()), undisturbed(inputs()))


@pytest.mark.parametrize("rows", [1, ROWS])
def test_batch_statistics_are_one_batchs(rows: int) -> None:
    """The first BatchNorm's statistics are mean and unbiased variance of its inputs over the batch, row by row."""
    workers = VirtualWorkers(modules(mlp, rows))
    found = batch_statistics(workers.module, workers.parameters, workers.buffers, inputs(rows))
    for row, module in enumerate(modules(mlp, rows)):
        hidden = module[0](inputs()[row]).detach()  # type: ignore[index]
        torch.testing.assert_close(found["1.running_mean"][row], hidden.mean(0))
        torch.testing.assert_close(found["1.running_var"][row], hidden.var(0))


def test_batch_statistics_change_nothing_else() -> None:
    """The buffers given, BatchNorm's momentum and the mode of training afterwards are as before."""
    workers = VirtualWorkers(modules(mlp))
    before = copy.deepcopy(workers.buffers)
    batch_statistics(workers.module, workers.parameters, workers.buffers, inputs())
    torch.testing.assert_close(workers.buffers, before, rtol=0, atol=0)
    undisturbed = VirtualWorkers(modules(mlp))
    assert torch.equal(workers(inputs()), undisturbed(inputs()))
    torch.testing.assert_close(workers.buffers, undisturbed.buffers, rtol=0, atol=0)


def test_batch_statistics_are_taken_without_dropout() -> None:
    """They belong to evaluation, where nothing is dropped: twice the same, for models that drop before BatchNorm too."""
    make = lambda: nn.Sequential(nn.Dropout(0.5), nn.Linear(5, 4), nn.BatchNorm1d(4)).double()  # noqa: E731
    workers = VirtualWorkers(modules(make))
    found = batch_statistics(workers.module, workers.parameters, workers.buffers, inputs())
    for row, module in enumerate(modules(make)):
        hidden = module[1](inputs()[row]).detach()  # type: ignore[index]
        torch.testing.assert_close(found["2.running_mean"][row], hidden.mean(0))


@pytest.mark.parametrize(
    ("module", "has"),
    [
        (mlp(), True),
        (nn.Sequential(nn.Sequential(nn.BatchNorm2d(2))), True),
        (nn.BatchNorm1d(2, track_running_stats=False), False),
        (nn.LayerNorm(2), False),
    ],
)
def test_has_batchnorm(module: nn.Module, has: bool) -> None:
    """Only running statistics count."""
    assert has_batchnorm(module) == has


def test_frozen_parameters_stay_frozen() -> None:
    """A row's parameter needs a gradient where the module's does."""
    made = modules(mlp)
    made[0][0].weight.requires_grad_(False)  # type: ignore[index,union-attr]
    workers = VirtualWorkers(made)
    assert [name for name, p in workers.parameters.items() if not p.requires_grad] == ["0.weight"]


def test_an_error_of_the_model_is_not_swallowed() -> None:
    """A wrong shape is the user's to see, not a reason to try the loop."""
    workers = VirtualWorkers(modules(mlp))
    with pytest.raises(ModelError, match="shapes cannot be multiplied"):
        workers(torch.zeros(ROWS, BATCH, 4, dtype=torch.float64))
    with pytest.raises(ModelError, match="shapes cannot be multiplied"):
        forward_rows(workers.module, workers.parameters, workers.buffers, torch.zeros(ROWS, 2, 4, dtype=torch.float64))
