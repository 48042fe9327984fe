"""The systems of other papers: the steps of their specifications, their bytes by hand, and what is special of each."""

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import Parameter

from cser_ray.budget import rounds
from cser_ray.communication.communicator import Communicator
from cser_ray.communication.owners import Owners
from cser_ray.compressors.packing import pack_fields, unpack_fields
from cser_ray.methods import METHODS
from cser_ray.optimizers import Placement
from cser_ray.optimizers.systems.levels import Levels
from cser_ray.structure import Structure
from cser_ray.systems_paper import quantised
from tests.contract.laws import mean_recursion
from tests.contract.system_cases import BIN, RATIO, SYSTEMS
from tests.processes import run_processes
from tests.stacked import (
    LR,
    OPTIMIZERS,
    STEPS,
    D,
    build,
    distance,
    dropping,
    logistic,
    models,
    start,
    take_step,
    trajectory,
)

N = 3
STEPPED = ("qsgd", "ecq-sgd", "adacomp", "powersgd")
"""Take torch's fused step on the mean: its last bit depends on where a row lies in memory."""
every_system = pytest.mark.parametrize("method", SYSTEMS)


def of(method: str, n: int = N, **arguments: Any) -> Any:
    """A system over stacked workers."""
    return build(method, n, **SYSTEMS[method].arguments | arguments)


@every_system
@pytest.mark.parametrize("n", [1, 2, 3, 8])
@pytest.mark.parametrize(("momentum", "decay"), [(0.0, 0.0), (0.9, 0.0), (0.9, 0.05)])
def test_it_takes_the_steps_of_its_specification(method: str, n: int, momentum: float, decay: float) -> None:
    """Models and residuals, to rounding, while the learning rate drops; one worker and many, a tie in every vote of two."""
    optimizer = of(method, n, momentum=momentum, weight_decay=decay)
    specified = SYSTEMS[method].specification(start(n), logistic(n), dropping, momentum, decay)
    for x, (x_specified, *residuals) in zip(trajectory(optimizer, logistic(n), lr=dropping), specified, strict=False):
        assert distance(x, x_specified) < SYSTEMS[method].tolerance
        found = SYSTEMS[method].residuals(optimizer, dropping(optimizer.t))
        assert len(found) == len(residuals)
        assert all(
            distance(ours, theirs) < 10 * SYSTEMS[method].tolerance
            for ours, theirs in zip(found, residuals, strict=True)
        )


@every_system
def test_models_are_equal(method: str) -> None:
    """Bit for bit where the message itself moves the model; after a fused step, as with `sgd`, but for the last bit."""
    assert OPTIMIZERS[method].models_equal
    for x in trajectory(of(method, weight_decay=0.05), logistic(N)):
        assert distance(x, x[:1].expand_as(x)) <= (1e-14 if method in STEPPED else 0.0)


@every_system
def test_gradients_are_left_as_they_were(method: str) -> None:
    """What backward accumulated is still in `.grad` after a step, as with torch's own optimizers."""
    optimizer = of(method, weight_decay=0.05)
    for t in (1, 2, 3):
        g = logistic(N)(models(optimizer), t)
        take_step(optimizer, logistic(N))
        assert torch.equal(torch.cat([p.grad.flatten(1) for p in optimizer.flat.parameters], -1), g)


# ------------------------------------------------------------------------------------------------------------ residuals


def paid(optimizer: Any) -> Tensor:
    """The mean model once the workers' and the server's errors have been paid."""
    server = getattr(optimizer, "server_e", torch.zeros(D)).reshape(-1)[:D]
    return models(optimizer).mean(0) - optimizer.e.mean((0, 1)) - server


@pytest.mark.parametrize("method", ["dist-ef-sgd", "dist-ef-block-sgd", "mem-sgd"])
@pytest.mark.parametrize("n", [1, 3, 8])
@pytest.mark.parametrize("decay", [0.0, 0.05])
def test_with_errors_paid_the_mean_takes_nesterovs_step(method: str, n: int, decay: float) -> None:
    """Exactly, for one worker and many: nothing is lost, on the way to the server, at it, or back."""
    assert mean_recursion(of(method, n, weight_decay=decay), paid) < 1e-13


@pytest.mark.parametrize("method", ["signum", "qsgd", "ecq-sgd", "adacomp"])
def test_elsewhere_it_does_not(method: str) -> None:
    """Not even with one worker: they give up this law, or keep it only on average."""
    assert mean_recursion(of(method, 1)) > 1e-3


@pytest.mark.parametrize("method", ["dist-ef-sgd", "dist-ef-block-sgd", "mem-sgd"])
def test_errors_can_be_paid_at_once(method: str) -> None:
    """`flush_error_` puts them into the models, whose mean is then what it would have come to."""
    optimizer = of(method)
    list(trajectory(optimizer, logistic(N), 5))
    expected = paid(optimizer)
    optimizer.flush_error_()
    assert distance(models(optimizer).mean(0), expected) < 1e-14
    assert distance(paid(optimizer), expected) < 1e-14


def test_one_worker_that_sends_all_is_sgd() -> None:
    """MEM-SGD at ratio 1 with n = 1 keeps every coordinate, so that nothing is left of its memory."""
    alone = trajectory(of("mem-sgd", 1, ratio=1.0, weight_decay=0.05), logistic(1))
    sgd = trajectory(build("sgd", 1, weight_decay=0.05), logistic(1))
    assert all(distance(x, y) < 1e-14 for x, y in zip(alone, sgd, strict=True))


def test_the_server_loads_with_as_many_workers_as_saved_it() -> None:
    """Its error is shared out: another number of owners has other shards, and is refused by name."""
    saved = of("dist-ef-sgd", 1)
    take_step(saved, logistic(1))
    with pytest.raises(ValueError, match=r"server's error has the shape \(1, 1, 16\), and this one \(1, 2, 8\)"):
        of("dist-ef-sgd", 2).load_state_dict(saved.state_dict())


# ---------------------------------------------------------------------------------------------------------------- bytes

HAND = {
    # d = 11 in float64. A shard is 8 coordinates for n >= 2: one byte of signs; a scale or norm takes 8.
    "dist-ef-sgd": {2: 2 * 1 * (1 + 8), 3: 2 * 2 * (1 + 8), 8: 2 * 7 * (1 + 8)},
    # two blocks of 4 a shard
    "dist-ef-block-sgd": {2: 2 * 1 * (1 + 16), 3: 2 * 2 * (1 + 16), 8: 2 * 7 * (1 + 16)},
    "signum": {2: 2, 3: 4, 8: 14},
    # 11 codes of 4 bits are 6 bytes; three buckets of 4
    "qsgd": {2: 6 + 24, 3: 2 * (6 + 24), 8: 7 * (6 + 24)},
    "ecq-sgd": {2: 6 + 24, 3: 2 * (6 + 24), 8: 7 * (6 + 24)},
}


@pytest.mark.parametrize("method", HAND)
@pytest.mark.parametrize("n", [2, 3, 8])
def test_bytes_by_hand(method: str, n: int) -> None:
    """What one step puts on the wire of each worker, filling up included."""
    optimizer = of(method, n)
    take_step(optimizer, logistic(n))
    entry = optimizer.communicator.ledger.entries["gradient"]
    assert entry.bytes == HAND[method][n]
    assert entry.collectives == rounds(method, Structure()) == METHODS[method].collectives


@pytest.mark.parametrize("n", [2, 3, 8])
def test_bytes_of_mem_sgd_hold_the_ratio(n: int) -> None:
    """12 bytes a coordinate to everybody; over 60 steps the k that is no whole number has been met to one coordinate."""
    optimizer = of("mem-sgd", n, ratio=4.0)
    steps = 60
    list(trajectory(optimizer, logistic(n), steps))
    sent = optimizer.communicator.ledger.entries["gradient"].bytes
    exact = optimizer.communicator.dense_bytes(D, steps) * 2 / 4.0  # of float64
    assert exact - 12 * (n - 1) <= sent <= exact
    assert sent % (12 * (n - 1)) == 0


@pytest.mark.parametrize("n", [2, 3, 8])
def test_bytes_of_adacomp_follow_the_gradients(n: int) -> None:
    """The longest message counts for all: here worker 0's, of one coordinate in each of four bins, and two that tie."""
    g = torch.zeros(n, D, dtype=torch.float64)
    g[0, [0, 3, 6, 9]] = 1.0
    g[0, [1, 10]] = -1.0
    optimizer = of("adacomp", n)
    take_step(optimizer, lambda x, t: g)
    entry = optimizer.communicator.ledger.entries["gradient"]
    scales, places = 2 * 8, 6 * 4
    assert entry.bytes == (n - 1) * (4 + scales + places)  # 4 to agree on the length
    assert entry.collectives == 2 == rounds("adacomp", Structure())


@pytest.mark.parametrize("method", HAND)
@pytest.mark.parametrize("n", [2, 3, 8])
@pytest.mark.parametrize("d", [1000, 9098, 100_003])
def test_the_record_knows_the_bytes(method: str, n: int, d: int) -> None:
    """`bytes_sent(d, n)` is the ledger's, in fp32 and at the optimizers' own numbers."""
    placement = Placement(Communicator(n, group=None), stacked=True)
    optimizer = OPTIMIZERS[method]([Parameter(torch.ones(n, d))], placement=placement)
    optimizer.step()
    promised = METHODS[method].bytes_sent
    assert promised is not None
    assert optimizer.communicator.ledger.entries["gradient"].bytes == promised(d, n)


@every_system
def test_one_worker_sends_nothing(method: str) -> None:
    """With n = 1 there is nobody to send to."""
    optimizer = of(method, 1)
    take_step(optimizer, logistic(1))
    assert optimizer.communicator.ledger.entries == {}


# ------------------------------------------------------------------------------------------------------------ processes


def stepped(workers: int) -> dict[str, tuple[Tensor, Any]]:
    """Models of all systems after some steps, of the workers here, and the ledgers; of four workers in all."""
    found = {}
    for method, system in SYSTEMS.items():
        placement = Placement(Communicator(workers), stacked=True)
        mine = placement.communicator.worker_ids
        own = slice(mine.start, mine.stop)
        rows = Parameter(start(4)[own].clone())
        optimizer = OPTIMIZERS[method]([rows], lr=LR, placement=placement, **system.arguments)
        gradient = logistic(4)
        for t in range(1, STEPS + 1):
            everywhere = rows.detach()[:1].expand(4, D)
            assert rows.grad is not None
            rows.grad.copy_(gradient(everywhere, t)[own])
            optimizer.step()
        entries = {name: entry for name, entry in placement.communicator.ledger.entries.items() if name == "gradient"}
        found[method] = rows.detach().clone(), entries
    return found


@pytest.mark.parametrize("processes", [2, 4])
def test_processes_take_the_same_steps_bit_for_bit(processes: int) -> None:
    """Four virtual workers, 2 processes with 2 each, and 4 processes: the same models and the same ledger."""
    expected = stepped(4)
    for found in run_processes(processes, partial(stepped, 4 // processes)):
        for method, (x, entries) in found.items():
            assert distance(x, expected[method][0][: len(x)]) <= (1e-14 if method in STEPPED else 0.0), method
            assert entries == expected[method][1], method


@every_system
def test_other_seeds_on_one_rank_are_named(method: str) -> None:
    """Their random numbers would be other ones, or the runs would not be repeats of each other."""

    def work() -> str:
        rank = Communicator(1).rank
        try:
            parameters = [Parameter(torch.zeros(D))]
            OPTIMIZERS[method](parameters, placement=Placement(seeds=(rank,)), **SYSTEMS[method].arguments)
        except RuntimeError as error:
            return str(error)
        return ""

    for said in run_processes(2, work):
        assert "the seeds: (1,) on rank 1, (0,) on rank 0" in said


# ---------------------------------------------------------------------------------------------------------------- parts


@pytest.mark.parametrize(("d", "owners", "size"), [(11, 1, 16), (11, 2, 8), (11, 8, 8), (48, 3, 16), (49, 3, 24)])
def test_shards(d: int, owners: int, size: int) -> None:
    """Whole bytes of bits each; joining undoes splitting; what is filled up is held by nobody."""
    owned, v = Owners(d, owners), torch.arange(1.0, d + 1)
    assert owned.size == size
    assert torch.equal(owned.join(owned.split(v)), v)
    assert torch.equal(owned.held(v.device), owned.split(v) > 0)


@pytest.mark.parametrize(("bits", "codes"), [(2, 4), (4, 16), (8, 256)])
def test_codes_are_packed(bits: int, codes: int) -> None:
    """As many a byte as fit, and back."""
    numbers = torch.randint(0, codes, (2, 11), generator=torch.Generator().manual_seed(0))
    packed = pack_fields(numbers, bits)
    assert packed.shape == (2, -(-11 * bits // 8))
    assert torch.equal(unpack_fields(packed, bits, 11), numbers)


@pytest.mark.parametrize("levels", [1, 3, 7, 127])
def test_the_quantiser_is_unbiased_and_its_variance_bounded(levels: int) -> None:
    """Over many draws the mean comes to v, and E ||Q(v) - v||^2 stays below omega ||v||^2."""
    v = torch.randn(1, 24, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    quantiser = Levels(levels, bucket_size=8).with_streams((0,), 1, range(1))
    residuals = torch.cat([quantiser.compress(v, call).residual() for call in range(1, 2001)])
    variance = float(residuals.pow(2).sum(1).mean() / v.pow(2).sum())
    assert variance <= quantiser.omega(24)
    assert float(residuals.mean(0).norm() / v.norm()) < 4 * (variance / 2000) ** 0.5


def test_an_empty_bucket_is_sent_as_zeros() -> None:
    """The specification and the codes agree where a norm is 0."""
    v = torch.zeros(1, D, dtype=torch.float64)
    assert not quantised(v, 3, 4, torch.full_like(v, 0.999)).any()
    assert not Levels(3, 4).compress(v, 1).residual().any()


@pytest.mark.parametrize(
    ("method", "bad", "said"),
    [
        ("dist-ef-sgd", {"betas": (0.9, 0.99)}, "leave `inner` and `betas` out"),
        ("dist-ef-sgd", {"inner": "adamw"}, "leave `inner` and `betas` out"),
        ("dist-ef-block-sgd", {"block_size": 0}, "A block holds at least one coordinate, not 0"),
        ("signum", {"betas": (0.9, 0.99)}, "leave `inner` and `betas` out"),
        ("signum", {"inner": "muon"}, "leave `inner` and `betas` out"),
        ("mem-sgd", {"ratio": 0.5}, "needs a finite ratio >= 1, not 0.5"),
        ("qsgd", {"levels": 128}, "1 to 127 of them, not 128"),
        ("qsgd", {"bucket_size": 0}, "A bucket holds at least one coordinate, not 0"),
        ("ecq-sgd", {"compensation": 1.5}, r"are in \[0, 1\], not 1.5 and 0.8"),
        ("adacomp", {"bin_size": 0}, "A bin holds at least one coordinate, not 0"),
    ],
)
def test_bad_arguments_are_refused(method: str, bad: dict[str, Any], said: str) -> None:
    """With the value and the rule."""
    with pytest.raises(ValueError, match=said):
        of(method, **bad)


@pytest.mark.parametrize("method", ["mem-sgd", "qsgd", "ecq-sgd", "adacomp"])
def test_the_rest_goes_around_adamw(method: str) -> None:
    """`betas` put AdamW in place of Nesterov's step, before the message or after the mean: models stay equal and move."""
    optimizer = of(method, betas=(0.8, 0.9), lr=0.01)
    *_, x = trajectory(optimizer, logistic(N))
    assert distance(x, x[:1].expand_as(x)) < 1e-14
    assert distance(x, start(N)) > 1e-3


def test_a_convolutions_bins_are_shorter() -> None:
    """Parameters of three dimensions or more have bins of their own size, as in the paper."""
    parameters = [Parameter(torch.ones(2, 3, 3, 3)), Parameter(torch.ones(60))]
    optimizer = OPTIMIZERS["adacomp"](parameters, bin_size=BIN, convolution_bin_size=27)
    assert [size for _, size in optimizer._layers] == [27, BIN]  # type: ignore[attr-defined]


def test_the_ratio_of_the_case_is_what_leaves_less_than_all() -> None:
    """Of one worker it keeps fewer coordinates than there are, else its specification would test nothing."""
    assert 16 * D / (12 * RATIO) < D
