"""The wrong programs that are easily written, and which law catches each: a law that caught none would be no test."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import pytest
from torch import Tensor

from cser_ray.communication.communicator import Communicator
from cser_ray.compressors import GRBS, Compressor, Identity, Message, TopK, Zero
from cser_ray.compressors.identity import SelectAll
from cser_ray.optimizers import CSER, QSparseLocalSGD
from cser_ray.optimizers.forms.delayed import DelayedWithoutError, InFlight
from cser_ray.optimizers.forms.with_error import WithError
from cser_ray.partial_sync import partial_sync
from tests.contract.laws import (
    VIRTUAL,
    H,
    N,
    cser,
    disagreement_after_reset,
    distance_from_paper,
    lemma_1,
    mean_recursion,
)
from tests.stacked import LR, build, distance, logistic, trajectory


class AsPrinted(CSER):
    """Algorithm 4 as printed, x and e side by side, where a wrong line can be put in its place."""

    trap = ""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs | {"implementation": "I"})

    def update(self, x: Tensor, g: Tensor, t: int) -> None:
        assert isinstance(self.form, WithError)
        e, lr = self.form.e, self.param_groups[0]["lr"]
        p = self.local_update(x, g)
        p_mean, r = partial_sync(p, self.gradient_compressor, self.communicator, t, "gradient")
        p_synced = p_mean + r
        x -= p_synced * (lr if self.trap == "x moves by eta p'" else 1)
        if self.trap == "r is taken after v' was overwritten":
            r = p_synced - (p - r)
        e -= r * {"e += r": -1, "eta twice in e": lr, "eta never in e": 1 / lr}.get(self.trap, 1)
        if t % self.reset_interval == 0:
            e_mean, e_new = partial_sync(e, self.reset_compressor, self.communicator, t // H, "reset")
            e_synced, sent = e_mean + e_new, e - e_new
            e_old = {"x += e' without - e": 0 * e, "x += e - e'": 2 * e_synced - e}.get(self.trap, e)
            x += e_synced - e_old
            self.form.e = {"e <- 0": 0 * e, "e <- C(e)": sent, "e <- e'": e_synced}.get(self.trap, e_new)


def laws_broken_by(trap: str) -> set[str]:
    """The laws that a program with this wrong line fails, visibly."""
    kind = type("Wrong", (AsPrinted,), {"trap": trap})
    grbs, top_k = (GRBS(2), GRBS(3)), (TopK(2), TopK(3))
    off = {
        "lemma 1": max(lemma_1(cser(kind, *pair)) for pair in (grbs, top_k)),
        "mean": max(mean_recursion(cser(kind, *pair)) for pair in (grbs, top_k)),
        "reset": disagreement_after_reset(cser(kind, Identity(), GRBS(3))),
        "blocks": distance_from_paper(cser(kind, *grbs), *grbs),
        "top-k": distance_from_paper(cser(kind, *top_k), *top_k),
    }
    return {law for law, value in off.items() if not value < 1e-6}


@pytest.mark.parametrize(
    ("trap", "caught_by"),
    [
        ("e += r", {"lemma 1", "reset"}),
        ("r is taken after v' was overwritten", {"lemma 1", "reset"}),
        ("eta twice in e", {"lemma 1", "reset"}),
        ("eta never in e", {"lemma 1", "reset"}),
        ("x moves by eta p'", {"lemma 1", "mean", "reset"}),
        ("x += e - e'", {"lemma 1", "reset"}),
        ("x += e' without - e", {"lemma 1", "mean", "reset"}),
        ("e <- 0", {"lemma 1"}),
        ("e <- C(e)", {"lemma 1", "reset"}),
        ("e <- e'", {"reset", "top-k"}),
    ],
)
def test_the_invariants_catch_the_known_traps(trap: str, caught_by: set[str]) -> None:
    """Each wrong line breaks the laws that are there for it; `e <- e'` slips past both lemmas and even past GRBS."""
    broken = laws_broken_by(trap)
    assert caught_by <= broken
    if trap == "e <- e'":
        assert not broken & {"lemma 1", "mean", "blocks"}


def test_the_program_without_a_trap_breaks_no_law() -> None:
    """The traps are caught for what they change, not for the form they stand in."""
    assert laws_broken_by("") == set()


def test_11_coupled_decay_keeps_lemma_1_and_decaying_models_alone_does_not() -> None:
    """Inside p, decay moves x and e alike; multiplying x_i by 1 - eta * decay moves x_i - e_i apart."""

    class DecaysModelsAlone(AsPrinted):
        def update(self, x: Tensor, g: Tensor, t: int) -> None:
            x.mul_(1 - LR * 0.05)
            super().update(x, g, t)

    assert lemma_1(cser(AsPrinted, GRBS(2), GRBS(3), weight_decay=0.05)) < 1e-14
    assert lemma_1(cser(DecaysModelsAlone, GRBS(2), GRBS(3))) > 1e-3


@dataclass(frozen=True)
class WrongResidual:
    """A compressor whose messages report `factor` times what they leave behind."""

    inner: Compressor
    factor: float

    def with_streams(self, seeds: tuple[int, ...], stream: int, workers: range) -> "WrongResidual":
        return WrongResidual(self.inner.with_streams(seeds, stream, workers), self.factor)

    def compress(self, v: Tensor, call: int) -> Message:
        return WrongMessage(self.inner.compress(v, call), self.factor)


@dataclass(frozen=True)
class WrongMessage:
    """See `WrongResidual`."""

    inner: Message
    factor: float

    def residual(self) -> Tensor:
        return self.factor * self.inner.residual()

    def average(self, communicator: Communicator, name: str) -> Tensor:
        return self.inner.average(communicator, name)


@pytest.mark.parametrize("factor", [-1.0, 0.0, LR], ids=["e += r", "e <- 0", "eta twice"])
@pytest.mark.parametrize("wrong", ["C1", "C2"])
def test_the_mean_catches_what_the_form_with_a_common_model_hides(factor: float, wrong: str) -> None:
    """X = x_hat + e obeys Lemma 1 by construction, right or wrong; its mean and the paper's run do not forgive."""
    c1, c2 = (WrongResidual(GRBS(2), factor) if wrong == name else GRBS(2) for name in ("C1", "C2"))
    assert lemma_1(cser(CSER, c1, c2, implementation="I")) < 1e-14
    assert mean_recursion(cser(CSER, c1, c2, implementation="I")) > 1e-3
    assert distance_from_paper(cser(CSER, c1, c2, implementation="I"), GRBS(2), GRBS(2)) > 1e-3


def test_overwriting_a_delayed_reset_by_the_mean_is_caught() -> None:
    """x[block] = mean(s), three steps late, loses the steps since."""

    right, wrong = (cser(CSER, GRBS(2), GRBS(3), reset_interval=5, reset_delay=3) for _ in range(2))

    class Overwrites(DelayedWithoutError):
        def arrived(self, t: int) -> Iterator[InFlight]:
            for flight in super().arrived(t):
                yield replace(flight, sent=flight.blocks.take(wrong.x))

    wrong.form = Overwrites(wrong.reset_compressor, wrong.gradient_compressor, 5, 3)
    assert mean_recursion(right) < 1e-14
    assert mean_recursion(wrong) > 1e-3


def test_sending_twice_what_is_under_way_is_caught() -> None:
    """A second reset of the same blocks, launched before the first has arrived, sees an error that was sent already."""

    class Twice(SelectAll):
        def add_to_(self, taken: Tensor, values: Tensor, other: SelectAll) -> None:
            return

    class All(Identity):
        def select(self, v: Tensor, call: int) -> SelectAll:
            return Twice()

    arguments: dict[str, Any] = {"reset_interval": 1, "reset_delay": 3, "implementation": "II"}
    right, wrong = (list(trajectory(cser(CSER, c1, Zero(), **arguments), logistic(N))) for c1 in (Identity(), All()))
    by_error = trajectory(cser(CSER, Identity(), Zero(), **arguments | {"implementation": "I"}), logistic(N))
    assert all(distance(x, y) < 1e-13 for x, y in zip(right, by_error, strict=True))
    assert distance(right[-1], wrong[-1]) > 1e-3


def test_the_error_feedback_laws_catch_a_lost_residual() -> None:
    """QSparse that forgets e moves by less than the mean step."""

    class Forgets(QSparseLocalSGD):
        def update(self, x: Tensor, g: Tensor, t: int) -> None:
            super().update(x, g, t)
            self.e.zero_()

    arguments: dict[str, Any] = {"reset_interval": H, "reset_compressor": GRBS(3)}
    assert mean_recursion(build(QSparseLocalSGD, N, **arguments), VIRTUAL["qsparse"]) < 1e-14
    assert mean_recursion(build(Forgets, N, **arguments), VIRTUAL["qsparse"]) > 1e-3
