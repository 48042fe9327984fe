"""The model of time: what it must say on links where the answer is known without it."""

import math
from dataclasses import replace

import pytest
import torch
from torch.nn import Parameter

from cser_ray.budget import Structure, rounds, structure_for
from cser_ray.communication.communicator import Communicator
from cser_ray.compressors.text import parse
from cser_ray.config import RunConfig
from cser_ray.methods import METHODS
from cser_ray.train.build import make_optimizer
from tests.tuning.link_table import HIDDEN_MS, HOST_MS_PER_MB, LOCAL_MS, PARAMS, REACHED, STAGE_MS, table
from tuning.advise.calibration import steps_of
from tuning.advise.constants import FITTED, Constants
from tuning.advise.peers import PEER_TRAFFIC
from tuning.advise.step_time import Form, Job, predict

JOB = Job(params=1_000_000, step_s=0.010, workers=4, rate=1e9)
PLAIN = Constants(1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, "nothing but the wire")
RING_S = 2 * 3 / 4 * 4e6 * 8 / 1e9
"""A dense all-reduce of JOB."""


def at(method: str, ratio: float) -> Structure:
    """Its structure at a ratio, or the one that it has where it takes none."""
    budget = METHODS.get(method)
    return structure_for(method, ratio) if budget and budget.knobs else Structure()


# the bytes of two follow the gradients, and the parameters' shapes
@pytest.mark.parametrize("method", sorted(set(METHODS) - {"adacomp", "powersgd"}))
def test_bytes_and_rounds_are_those_of_the_ledger(method: str) -> None:
    """What a plan says is sent in a step is what the optimizer's own ledger counts, over whole intervals."""
    structure = at(method, 8)
    config = RunConfig(method=method, reset_interval=structure.reset_interval, reset_ratio=structure.reset_ratio,
                       gradient_ratio=structure.gradient_ratio, momentum=0.9, workers=4)  # fmt: skip
    communicator, steps = Communicator(4, group=None), 8 * structure.reset_interval
    parameter = Parameter(torch.zeros(4, 10_001))  # 5001 blocks of 2: one is padded
    optimizer = make_optimizer(config, [parameter], communicator, 0.1, (0,))
    for _ in range(steps):
        parameter.grad = torch.ones_like(parameter)
        optimizer.step()
    sent = communicator.ledger.total(in_ratio=True)
    found = predict(Form(method, structure), replace(JOB, params=10_001), PLAIN)
    assert found.sent * steps == pytest.approx(sent.bytes, rel=0.002)
    assert found.rounds * steps == pytest.approx(sent.collectives)


@pytest.mark.parametrize(
    "compressor", ["top-k/4096@two-way", "top-k/4096:int2@two-way", "shared-top/64", "top-k/4096", "grbs"]
)
@pytest.mark.parametrize("method", ["csea", "cser-pl", "cser", "ef-sgd", "qsparse", "partial-reset"])
def test_collectives_of_a_compressor_are_those_of_the_ledger(method: str, compressor: str) -> None:
    """There and back through owners, or to agree and then to send, are two; bytes are those of the ratio within 2 %."""
    structure = structure_for(method, 4)
    config = RunConfig(method=method, workers=4, compressor=compressor, **vars(structure))
    communicator, steps, d = Communicator(4, group=None), 8 * structure.reset_interval, 40_000
    parameter = Parameter(torch.zeros(4, d))
    optimizer = make_optimizer(config, [parameter], communicator, 0.1, (0,))
    for _ in range(steps):
        parameter.grad = torch.ones_like(parameter)
        optimizer.step()
    sent = communicator.ledger.total(in_ratio=True)
    assert rounds(method, structure, parse(compressor).collectives) * steps == pytest.approx(sent.collectives)
    found = predict(Form(method, structure, compressor=compressor), replace(JOB, params=d), PLAIN)
    assert found.rounds * steps == pytest.approx(sent.collectives)
    assert found.sent * steps == pytest.approx(sent.bytes, rel=0.02)


def test_two_collectives_wait_for_two_latencies() -> None:
    """Of a reset there and back, as of no other."""
    structure, slow = structure_for("csea", 64), replace(JOB, latency_s=0.003)

    def late_s(compressor: str) -> float:
        form = Form("csea", structure, compressor=compressor)
        return predict(form, slow, PLAIN).step_s - predict(form, replace(slow, latency_s=0.0), PLAIN).step_s

    assert late_s("top-k/4096@two-way") == pytest.approx(0.006)
    assert [late_s("top-k/4096"), late_s("grbs")] == pytest.approx([0.003, 0.003])


def test_an_exact_form_pays_the_wire_whole() -> None:
    """Every H steps it waits for the ring: bytes over rate, and nothing else where nothing else costs."""
    found = predict(Form("local-sgd", structure_for("local-sgd", 8)), JOB, PLAIN)
    assert found.exposed_s == pytest.approx(RING_S / 8, rel=1e-3)
    assert found.over_local == pytest.approx(1 + RING_S / 8 / JOB.step_s, rel=1e-3)


def test_a_delayed_reset_hides_behind_the_steps_of_its_delay() -> None:
    """48 ms of wire and steps of 10 ms: 3 steps hide 30 of them, 5 hide all; then the host's part is left."""
    form = Form("local-sgd", structure_for("local-sgd", 8))
    assert 8 * predict(replace(form, reset_delay=3), JOB, PLAIN).exposed_s == pytest.approx(RING_S - 0.030, rel=1e-2)
    assert predict(replace(form, reset_delay=5), JOB, PLAIN).exposed_s == 0
    busy = replace(PLAIN, host_s_per_byte=1e-9)
    assert 8 * predict(replace(form, reset_delay=5), JOB, busy).exposed_s == pytest.approx(6e6 * 1e-9, rel=1e-2)


def test_a_delay_past_the_next_reset_hides_no_more() -> None:
    """The link cannot carry more than its rate: csea at R_C = 2 sends 24 ms of bytes every 10 ms, whatever the delay."""
    late = predict(Form("csea", structure_for("csea", 2), reset_delay=16), JOB, PLAIN)
    assert late.step_s == pytest.approx(RING_S / 2, rel=1e-3)


def test_gradients_wait_behind_a_late_reset() -> None:
    """cser's reset hides behind one step, whatever its delay, because the next step's gradients come after it."""
    form = Form("cser", structure_for("cser", 8, reset_interval=4))
    one, four = (predict(replace(form, reset_delay=tau), JOB, PLAIN).step_s for tau in (1, 4))
    assert one == four < predict(form, JOB, PLAIN).step_s


def test_a_shaper_lets_its_burst_through() -> None:
    """Bytes up to it take no time on the wire, those above take the rate; a user's link has none."""
    form = Form("csea", structure_for("csea", 8))
    sent = predict(form, JOB, PLAIN).sent
    whole = predict(form, JOB, PLAIN).exposed_s
    assert predict(form, replace(JOB, burst=sent / 4), PLAIN).exposed_s == pytest.approx(0.75 * whole)
    assert predict(form, replace(JOB, burst=2 * sent), PLAIN).exposed_s == 0.0


def test_ddp_hides_a_share_of_the_step() -> None:
    """Of the dense ring, what backward covers; four accumulated steps pay it once."""
    half = replace(PLAIN, hidden=0.5)
    assert predict(Form("ddp"), JOB, half).exposed_s == pytest.approx(RING_S - 0.005)
    assert predict(Form("ddp-bf16-accumulate4"), JOB, half).exposed_s == pytest.approx((RING_S / 2 - 0.005) / 4)


@pytest.mark.parametrize("method", [*METHODS, *PEER_TRAFFIC])
def test_more_rate_is_never_slower(method: str) -> None:
    """A faster link shortens the step of whatever sends something, and lengthens none."""
    structure = at(method, 16)
    steps = [predict(Form(method, structure), replace(JOB, rate=10.0**k), FITTED["gloo"]).step_s for k in range(6, 15)]
    assert steps == sorted(steps, reverse=True)
    assert steps[0] > steps[-1] or method.startswith("no-sync")


def test_one_worker_sends_nothing() -> None:
    """With n = 1 no method has bytes or rounds."""
    for method in ("ddp", "local-sgd", "csea"):
        found = predict(Form(method), replace(JOB, workers=1), FITTED["nccl"])
        assert (found.sent, found.rounds) == (0, 0)


def test_workers_of_several_processes() -> None:
    """Hosts of 8 send what single processes would by our methods; DDP's ring of all 32 sends 31/24 of a ring of 4."""
    hosts = replace(JOB, processes_per_worker=8)
    local = Form("local-sgd", structure_for("local-sgd", 8))
    assert predict(local, hosts, FITTED["nccl"]) == predict(local, JOB, FITTED["nccl"])
    ring, flat = (predict(Form("ddp"), job, PLAIN) for job in (hosts, JOB))
    assert ring.sent / flat.sent == pytest.approx((31 / 32) / (3 / 4))
    slow = replace(PLAIN, hop_s=1e-3)
    late, early = (
        predict(Form("ddp"), job, slow).step_s - predict(Form("ddp"), job, PLAIN).step_s for job in (hosts, JOB)
    )
    assert (late, early) == pytest.approx((2 * 62e-3, 2 * 6e-3))  # two buckets


def test_powersgd_sends_its_factors_of_matrices_and_whole_vectors() -> None:
    """Rank 4 of 100 x 200 is 1200 values; a vector of 50 and a matrix too small to shrink go as they are."""
    job = replace(JOB, params=20_000 + 50 + 9, matrices=((100, 200), (50, 1), (3, 3)))
    assert predict(Form("powersgd-4"), job, PLAIN).sent == pytest.approx(1.5 * 4 * (4 * 300 + 50 + 9))


def test_it_is_the_formula_written_out_by_hand() -> None:
    """With the constants of another formula for the same physics, every step is that formula's."""
    megabytes = 4 * PARAMS / 1e6
    c = Constants(
        efficiency=REACHED, hop_s=STAGE_MS / 1e3, host_hop_s=0.0, host_s_per_byte=HOST_MS_PER_MB / 1e9,
        hidden=HIDDEN_MS / LOCAL_MS, early_s=0.0, pass_s_per_byte=0.0, ddp_s_per_byte=0.0,
        cast_s_per_byte=3.0 / megabytes / 1e9, power_s_per_byte=0.0, power_s=0.012, source="by hand",
    )  # fmt: skip
    steps = steps_of(table())
    assert len(steps) == 108
    for step in steps:
        assert predict(step.form, step.job, c).step_s == pytest.approx(step.step_s, rel=3e-3), step.key


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"params": 0}, "0 parameters: a job has 1 or more"),
        ({"workers": 0}, "0 workers: a job has 1 or more"),
        ({"rate": 0.0}, "The link's rate is 0"),
        ({"step_s": math.nan}, "The step's time is nan"),
        ({"latency_s": -1.0}, "A latency is at least 0, not -1 s"),
    ],
)
def test_a_job_that_cannot_be_is_refused(values: dict[str, float], message: str) -> None:
    """In a sentence that names the value."""
    with pytest.raises(ValueError, match=message):
        replace(JOB, **values)  # type: ignore[arg-type]
