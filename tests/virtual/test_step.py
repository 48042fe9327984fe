"""The four ways to take a step: equal results, a rule that chooses, and the way back where one fails."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from cser_ray.errors import CserWarning, ModelError
from cser_ray.tasks.base import losses
from cser_ray.virtual import VMAP_ON_CPU, GradientStep, VirtualWorkers, choose_way
from cser_ray.virtual.step import RECORDED_STEPS, VARIABLE
from tests.virtual.rows import MODELS, ROWS, after_steps, batch, rows_of


@pytest.mark.parametrize("way", ["vmap", "record"])
@pytest.mark.parametrize("name", MODELS)
def test_every_way_is_the_loop(name: str, way: str) -> None:
    """Losses, gradients and buffers after three steps, dropout included, are those of rows that take turns."""
    expected = after_steps(name, "loop")
    torch.testing.assert_close(after_steps(name, way), expected, rtol=1e-10, atol=1e-12)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", MODELS)
def test_a_step_recorded_again_is_the_same_bit_for_bit(name: str) -> None:
    """Nothing in it depends on time or on what ran before."""
    torch.testing.assert_close(after_steps(name, "record"), after_steps(name, "record"), rtol=0, atol=0)


@pytest.mark.parametrize("way", ["vmap", "record"])
@pytest.mark.parametrize("name", MODELS)
def test_autocast(name: str, way: str) -> None:
    """bf16 products move the losses by bf16's rounding, and by something: they really are bf16."""
    exact = after_steps(name, "loop", steps=1)["losses"].float()
    found = after_steps(name, way, steps=1, precision=torch.bfloat16)["losses"]  # type: ignore[arg-type]
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, exact, rtol=0.02, atol=0.02)
    assert float((found - exact).abs().max()) > 1e-5


def test_recording_is_no_step() -> None:
    """After the first call BatchNorm has counted one batch, and dropout one step."""
    workers = rows_of(MODELS["images"])
    GradientStep(workers, losses, "record")(*batch("images"))
    assert workers.buffers["1.num_batches_tracked"].tolist() == [1] * ROWS
    assert int(workers.step) == 1


def test_a_record_fills_gradients_that_were_taken_away() -> None:
    """`module.zero_grad()` sets `.grad` to None; the next step's gradients are there all the same."""
    workers = rows_of(MODELS["batchnorm"])
    step = GradientStep(workers, losses, "record")
    step(*batch("batchnorm"))
    expected = [p.grad.clone() for p in workers.parameters.values() if p.grad is not None]
    for p in workers.parameters.values():
        p.grad = None
    step(*batch("batchnorm"))
    found = [p.grad for p in workers.parameters.values()]
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_a_record_leaves_out_what_is_frozen_and_zeroes_what_is_unused() -> None:
    """A frozen parameter has no gradient, and one that the outputs do not depend on has a zero gradient."""

    class Partly(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.unused = nn.Linear(5, 3), nn.Linear(2, 2)
            self.used.weight.requires_grad_(False)

        def forward(self, x: Tensor) -> Tensor:
            return self.used(x)  # type: ignore[no-any-return]

    workers = rows_of(Partly)
    GradientStep(workers, losses, "record")(*batch("batchnorm"))
    gradients = {name: p.grad for name, p in workers.parameters.items()}
    assert gradients["used.weight"] is None
    assert gradients["used.bias"] is not None
    assert gradients["used.bias"].abs().sum() > 0
    torch.testing.assert_close(gradients["unused.weight"], torch.zeros(ROWS, 2, 2, dtype=torch.float64))


def test_another_batch_size_is_another_record() -> None:
    """A last, smaller batch is no wrong batch."""
    workers, looped = rows_of(MODELS["batchnorm"]), rows_of(MODELS["batchnorm"])
    step, loop = GradientStep(workers, losses, "record"), GradientStep(looped, losses, "loop")
    inputs, targets = batch("batchnorm")
    for size in (4, 3, 4):
        found, expected = (s(inputs[:, :size], targets[:, :size]) for s in (step, loop))
        torch.testing.assert_close(found, expected)


class Branching(nn.Module):
    """A path that depends on values, which cannot be recorded."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.head = nn.BatchNorm1d(5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(self.norm(x))
        return y if y.sum().item() > 0 else 2 * y


def test_what_cannot_be_recorded_is_stepped_eagerly() -> None:
    """One warning says so, once; the result is the loop's, and the failed try has left no trace in buffers."""
    workers, looped = rows_of(Branching), rows_of(Branching)
    step, loop = GradientStep(workers, losses, "record"), GradientStep(looped, losses, "loop")
    with pytest.warns(CserWarning, match=r"not recorded.*CSER_RAY_VIRTUAL=vmap.*vmap") as warned:
        first = step(*batch("batchnorm"))
    assert len(warned) == 1
    assert step.way == "vmap"
    assert workers.looped
    torch.testing.assert_close(first, loop(*batch("batchnorm")))
    step(*batch("batchnorm", 1))
    loop(*batch("batchnorm", 1))
    torch.testing.assert_close(workers.buffers, looped.buffers)


COMPILING = """
import warnings, torch
from torch import nn
from cser_ray.errors import CserWarning
from cser_ray.tasks.base import losses
from cser_ray.virtual import GradientStep, VirtualWorkers
inputs, targets = torch.randn(2, 3, 4), torch.randint(5, (2, 3))
module, results = nn.Sequential(nn.Dropout(0.5), nn.Linear(4, 5)), []
for way in ("compile", "loop"):
    workers = VirtualWorkers([module, module], seeds=[1, 2])
    step = GradientStep(workers, losses, way)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        step(inputs, targets)
    print(step.way, *(w.message for w in caught if w.category is CserWarning))
    results.append([p.grad for p in workers.parameters.values()])
torch.testing.assert_close(*results)
"""


def compiled_by(compiler: str, cache: Path) -> list[str]:
    """What a process prints that compiles with this C++ compiler: the way it took, its warnings, and the loop."""
    environment = os.environ | {
        "CXX": compiler,
        "TORCHINDUCTOR_CACHE_DIR": str(cache),
        "TORCHINDUCTOR_COMPILE_THREADS": "1",
    }
    done = subprocess.run(
        [sys.executable, "-c", COMPILING], env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.system
def test_the_compiled_step_is_the_loop(tmp_path: Path) -> None:
    """Gradients, dropout included."""
    assert compiled_by("g++", tmp_path) == ["compile", "loop"]


def test_what_cannot_be_compiled_is_recorded(tmp_path: Path) -> None:
    """Without a C++ compiler a warning says so, and the step has the loop's gradients all the same."""
    first, second = compiled_by("no-such-compiler", tmp_path)
    assert first.startswith("record The step of the virtual workers was not compiled")
    assert "no-such-compiler" in first
    assert second == "loop"


def test_short_runs_stay_eager_and_long_ones_are_recorded() -> None:
    """On a CPU nothing is ever compiled unasked; what is looped there stays so, and a single row too."""
    small, large = rows_of(MODELS["batchnorm"]), rows_of(lambda: nn.Linear(1, VMAP_ON_CPU))
    assert choose_way(small, RECORDED_STEPS - 1) == "vmap"
    assert choose_way(small, 10**9) == "record"
    assert choose_way(large, 10**9) == "loop"
    assert choose_way(VirtualWorkers([nn.Linear(2, 2)]), 10**9) == "loop"


def test_between_processes_the_step_is_eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """A record would bypass the hooks that send gradients during the backward pass, whatever is asked for."""
    assert choose_way(rows_of(MODELS["batchnorm"]), 10**9, recordable=False) == "vmap"
    monkeypatch.setenv(VARIABLE, "record")
    assert choose_way(rows_of(MODELS["batchnorm"]), 10**9, recordable=False) == "vmap"


def test_a_way_can_be_forced(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the environment; an unknown name is refused."""
    workers = rows_of(MODELS["batchnorm"])
    monkeypatch.setenv(VARIABLE, "compile")
    assert choose_way(workers, 1) == "compile"
    monkeypatch.setenv(VARIABLE, "fast")
    with pytest.raises(ValueError, match=r"CSER_RAY_VIRTUAL='fast' names no way.*loop, vmap, record, compile"):
        choose_way(workers, 1)


def test_a_wrong_shape_is_the_users_to_see() -> None:
    """Not a reason for a slower way that fails later."""
    step = GradientStep(rows_of(MODELS["batchnorm"]), losses, "record")
    inputs, targets = batch("batchnorm")
    with pytest.warns(CserWarning), pytest.raises(ModelError, match="shapes cannot be multiplied"):
        step(inputs[..., :4], targets)
