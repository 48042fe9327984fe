"""The executable specification itself: steps computed by hand, and the paper's lemma and remarks."""

from collections.abc import Iterator
from fractions import Fraction
from itertools import islice

import pytest
import torch
from torch import Tensor

from cser_ray.paper import Compress, cser, m_cser, partial_sync, qsparse_local_sgd
from cser_ray.seeds import Purpose
from tests.stacked import COMPRESSOR_EXAMPLES, LR, STEPS, D, compressed, distance, logistic, start

N = 3
every_compressor = pytest.mark.parametrize("name", COMPRESSOR_EXAMPLES)


def c1(name: str, n: int = N) -> Compress:
    """An example compressor, drawing the blocks of resets."""
    return compressed(COMPRESSOR_EXAMPLES[name], Purpose.RESET_BLOCKS, n)


def c2(name: str, n: int = N) -> Compress:
    """An example compressor, drawing the blocks of gradients."""
    return compressed(COMPRESSOR_EXAMPLES[name], Purpose.GRADIENT_BLOCKS, n)


def keep_one_in_turn(v: Tensor, call: int) -> Tensor:
    """C of the hand-computed examples: coordinate 0 in odd calls, coordinate 1 in even ones."""
    return v * torch.tensor([call % 2, 1 - call % 2], dtype=v.dtype)


def two_parabolas(x: Tensor, t: int) -> Tensor:
    """g_1(x) = x - (4, 0) and g_2(x) = 2 x - (0, 8): the gradients of the hand-computed examples."""
    return torch.tensor([[1.0], [2.0]]).double() * x - torch.tensor([[4.0, 0.0], [0.0, 8.0]]).double()


def exactly(*rows: str) -> Tensor:
    """A tensor of halves, quarters, ... written as fractions; all of them are exact in float64."""
    return torch.tensor([[float(Fraction(value)) for value in row.split()] for row in rows], dtype=torch.float64)


def differences(a: Iterator[tuple[Tensor, Tensor]], b: Iterator[tuple[Tensor, Tensor]], steps: int = STEPS) -> float:
    """The largest relative difference of the models along two runs."""
    pairs = zip(islice(a, steps), islice(b, steps), strict=True)
    return max(distance(x, y) for (x, _), (y, _) in pairs)


def test_m_cser_takes_the_three_steps_computed_by_hand() -> None:
    """Algorithm 4 with H = 2, eta = beta = 1/2 from x = 0: C2 in every step, C1 in the second, exact to the last bit.

    Step 1: p = 3/4 g = (-3, 0), (0, -6); coordinate 0 is averaged to -3/2.
    Step 2: m = (-9/2, 0), (3, 0), p = (-19/8, 0), (9/4, 2); coordinate 1 is averaged to 1; the errors (19/8, 0) and
    (-9/4, 6) are reset on coordinate 0, to 1/16.  Step 3: p = (-153/64, -3/4), (87/32, 3/2), averaged to 21/128.
    """
    x0 = torch.zeros(2, 2, dtype=torch.float64)
    run = m_cser(x0, two_parabolas, keep_one_in_turn, keep_one_in_turn, interval=2, lr=0.5, momentum=0.5)
    expected = [
        (exactly("3/2 0", "3/2 6"), exactly("0 0", "0 6")),
        (exactly("25/16 -1", "25/16 5"), exactly("0 0", "0 6")),
        (exactly("179/128 -1/4", "179/128 7/2"), exactly("0 3/4", "0 9/2")),
    ]
    for (x, e), (x_by_hand, e_by_hand) in zip(islice(run, 3), expected, strict=True):
        assert torch.equal(x, x_by_hand)
        assert torch.equal(e, e_by_hand)


def test_qsparse_takes_the_four_steps_computed_by_hand() -> None:
    """Algorithm 1 with H = 2, eta = 1/2 from x = 0: local steps, a message, and the residual's return two steps later.

    Step 2: p = (3, 0), (0, 4); coordinate 0 is sent, (0, 4) waits.  Step 4: p = (15/8, 0), (-3/2, 8); 1 is sent.
    """
    run = qsparse_local_sgd(torch.zeros(2, 2, dtype=torch.float64), two_parabolas, keep_one_in_turn, interval=2, lr=0.5)
    expected = [
        (exactly("2 0", "0 4"), exactly("0 0", "0 0")),
        (exactly("3/2 0", "3/2 0"), exactly("0 0", "0 4")),
        (exactly("11/4 0", "0 4"), exactly("0 0", "0 4")),
        (exactly("3/2 4", "3/2 4"), exactly("15/8 0", "-3/2 0")),
    ]
    for (x, e), (x_by_hand, e_by_hand) in zip(islice(run, 4), expected, strict=True):
        assert torch.equal(x.expand(2, 2), x_by_hand)
        assert torch.equal(e, e_by_hand)


@every_compressor
def test_partial_sync_keeps_the_mean(name: str) -> None:
    """mean_i v'_i = mean_i v_i for every C, biased or not, shared or private."""
    v = logistic(N)(start(N), 1)
    v_synced, _ = partial_sync(v, c1(name), 1)
    assert distance(v_synced.mean(0), v.mean(0)) < 1e-15


@every_compressor
def test_the_residual_is_what_compression_drops(name: str) -> None:
    """R = v - C(v), of the v before synchronization: the paper uses one name for both."""
    v = logistic(N)(start(N), 1)
    v_synced, r = partial_sync(v, c1(name), 1)
    assert torch.equal(r, v - c1(name)(v, 1))
    assert torch.allclose(v_synced - r, c1(name)(v, 1).mean(0).expand(N, D), atol=1e-15)


@pytest.mark.parametrize("order", ["random", "permuted", "cyclic"])
def test_algorithm_2_is_algorithm_4_without_momentum(order: str) -> None:
    """At beta = 0 compressing g and scaling r by eta is compressing p with eta inside, for GRBS."""
    first, second = c1(f"grbs {order}"), c2(f"grbs {order}")
    without = cser(start(N), logistic(N), first, second, 3, LR)
    assert differences(without, m_cser(start(N), logistic(N), first, second, 3, LR, 0.0)) < 1e-14


@every_compressor
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_lemma_1(name: str, momentum: float) -> None:
    """x_i - e_i is the same on all workers after every step."""
    for x, e in islice(m_cser(start(N), logistic(N), c1(name), c2(name), 3, LR, momentum), STEPS):
        assert distance((x - e)[1:], (x - e)[:1].expand(N - 1, D)) < 1e-14


def test_lemma_1_of_algorithm_2_leaves_workers_apart() -> None:
    """Lemma 1 holds for Algorithm 2 too, and is not about workers that agree anyway: their models differ."""
    run = list(islice(cser(start(N), logistic(N), c1("top-k"), c2("top-k"), 3, LR), STEPS))
    assert all(distance((x - e)[1:], (x - e)[:1].expand(N - 1, D)) < 1e-14 for x, e in run)
    assert all(distance(x[0], x[1]) > 1e-3 for x, _ in run)


@every_compressor
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_one_worker_is_plain_sgd(name: str, momentum: float) -> None:
    """Remark 2: with n = 1 CSER is SGD, torch's with Nesterov momentum, whatever C1, C2 and H."""
    w = torch.nn.Parameter(start(1))
    sgd = torch.optim.SGD([w], LR, momentum, nesterov=momentum > 0)
    for t, (x, _) in enumerate(
        islice(m_cser(start(1), logistic(1), c1(name, 1), c2(name, 1), 3, LR, momentum), STEPS), 1
    ):
        w.grad = logistic(1)(w.detach(), t)
        sgd.step()
        assert distance(x, w.detach()) < 1e-14


def test_error_feedback_with_one_worker_is_not_sgd() -> None:
    """Remark 2 holds for error reset alone: with n = 1 QSparse still delays what its compressor drops."""
    sgd = m_cser(start(1), logistic(1), c1("zero", 1), c2("zero", 1), 1, LR, 0.9)
    assert differences(qsparse_local_sgd(start(1), logistic(1), c1("top-k", 1), 1, LR, 0.9), sgd) > 0.1


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_qsparse_with_identity_is_cser_with_identity_and_no_gradient_sync(momentum: float) -> None:
    """Both are local SGD with local momentum."""
    qsparse = qsparse_local_sgd(start(N), logistic(N), c1("identity"), 3, LR, momentum)
    assert differences(qsparse, m_cser(start(N), logistic(N), c1("identity"), c2("zero"), 3, LR, momentum)) < 1e-14


@every_compressor
def test_the_mean_model_takes_the_mean_gradient(name: str) -> None:
    """Mean over workers of Algorithm 2: x_t = x_(t-1) - eta mean_i g_i(x_i), exactly, for every compressor."""
    previous, gradient = start(N), logistic(N)
    for t, (x, _) in enumerate(islice(cser(start(N), gradient, c1(name), c2(name), 3, LR), STEPS), 1):
        assert distance(x.mean(0), previous.mean(0) - LR * gradient(previous, t).mean(0)) < 1e-14
        previous = x
