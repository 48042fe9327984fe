"""The time of one step under each method: a small physical model whose every constant is named and fitted.

    step    = compute + overhead + sum over synchronisations of (times a step) * exposed
    exposed = started early * early + skew + max(host, wire - cover, uncovered * wire)

A synchronisation that sends b bytes from each of n workers keeps the wire busy for latency + 8 b / (efficiency * rate),
and takes a time of its own, the host's, from whoever computes, which never hides. The wire hides behind what computes
meanwhile, its cover: nothing for the exact forms; for DDP and `overlap` a share of the step, but the last part to start
is uncovered; the steps of its delay for a delayed reset. Bytes and rounds are those of `cser_ray.budget` and of the
ledger. Times are in seconds, rates in bits/s, bytes leave one worker.
"""

import math
from dataclasses import dataclass

from cser_ray.budget import Structure, call_collectives, ratio_of, realised, sync_times
from cser_ray.communication.wire import EDGES, dense_bytes
from cser_ray.compressors.text import parse
from cser_ray.knobs import Knobs
from cser_ray.methods import METHODS
from tuning.advise.constants import Constants
from tuning.advise.peers import PEER_TRAFFIC, buckets, sent_share

ONCE = Structure()
"""Everything, every step."""


@dataclass(frozen=True)
class Job:
    """What is trained and what joins the workers.

    `params`: d. `step_s`: one step without communication between workers. `rate`: of each worker's link, each way.
    `latency_s`: of one small all-reduce; None takes the constants'. `payload`: the rate was measured on payload, so it
    loses nothing further. `matrices`: (rows, columns) of each parameter, for PowerSGD; None assumes square ones.
    `processes_per_worker`: k, where a worker is a host of several; averaging inside it belongs to its step. `burst`:
    bytes of a synchronisation that a shaped link lets through at once; real ones have none. `skew_s`: what each
    synchronisation waits besides, for ranks that are late by turns. Raises ValueError for what no job can be.
    """

    params: int
    step_s: float
    workers: int
    rate: float
    latency_s: float | None = None
    payload: bool = False
    matrices: tuple[tuple[int, int], ...] | None = None
    processes_per_worker: int = 1
    burst: float = 0.0
    skew_s: float = 0.0

    def __post_init__(self) -> None:
        counts = {"parameters": self.params, "workers": self.workers, "processes a worker": self.processes_per_worker}
        for name, count in counts.items():
            if count < 1:
                raise ValueError(f"{count} {name}: a job has 1 or more")
        for name, value in (("step's time", self.step_s), ("link's rate", self.rate)):
            if not 0 < value < math.inf:
                raise ValueError(f"The {name} is {value:g}: it must be positive and finite")
        if self.latency_s is not None and not 0 <= self.latency_s < math.inf:
            raise ValueError(f"A latency is at least 0, not {self.latency_s:g} s")

    @property
    def ranks(self) -> int:
        """All processes: torch's own data parallelism joins them in one ring, ours the workers."""
        return self.workers * self.processes_per_worker

    def dense_bytes(self, ranks: int) -> float:
        """What a dense fp32 all-reduce of the model over a ring of so many ranks sends over each worker's link."""
        return dense_bytes(self.params, ranks)

    @property
    def model_bytes(self) -> float:
        """The fp32 model itself."""
        return 4.0 * self.params


@dataclass(frozen=True)
class Form:
    """A method at a structure: ours, or a peer of `tuning.advise.peers.PEER_TRAFFIC`.

    `overlap`: what is due in a step is sent during its backward pass. `sent`: a peer's bytes a step, where counted.
    `compressor`: as text, of a method that takes one.
    """

    method: str
    structure: Structure = ONCE
    reset_delay: int = 0
    overlap: bool = False
    sent: float | None = None
    compressor: str = Knobs.compressor


def suffixed(form: Form) -> str:
    """The form as `cser-ray bench links` names it: csea+delay4, cser+overlap."""
    return form.method + f"+delay{form.reset_delay}" * bool(form.reset_delay) + "+overlap" * form.overlap


@dataclass(frozen=True)
class Sync:
    """One kind of synchronisation: how many a step, what each sends, over a ring of how many, in how many collectives.

    `cover_s`: computing that it hides behind; `uncovered`: the share of it that starts too late for that. `early`: our
    collectives that start during the backward pass.
    """

    times: float
    sent: float
    ranks: int
    collectives: float = 1.0
    cover_s: float = 0.0
    uncovered: float = 0.0
    early: float = 0.0


@dataclass(frozen=True)
class Prediction:
    """The step of one form on one job."""

    form: Form
    local_s: float
    step_s: float
    rounds: float
    sent: float
    """Bytes that leave a worker in a step."""

    @property
    def exposed_s(self) -> float:
        """By how much communication, the method's own work for it included, lengthens the step."""
        return self.step_s - self.local_s

    @property
    def over_local(self) -> float:
        """Step time over that without communication."""
        return self.step_s / self.local_s


def predict(form: Form, job: Job, c: Constants) -> Prediction:
    """The predicted step. With one worker nothing is sent, and only the method's overhead is left."""
    found = synchronisations(form, job, c) if job.workers > 1 else ()
    waits = sum(sync.times * exposure_s(sync, job, c) for sync in found)
    return Prediction(
        form,
        job.step_s,
        job.step_s + overhead_s(form, job, c) + waits,
        sum(sync.times * sync.collectives for sync in found),
        sum(sync.times * sync.sent for sync in found),
    )


def synchronisations(form: Form, job: Job, c: Constants) -> tuple[Sync, ...]:
    """What a form sends, and behind what it hides; the reset first."""
    if form.method in PEER_TRAFFIC:
        peer = PEER_TRAFFIC[form.method]
        times = peer.times / form.structure.reset_interval
        share = sent_share(peer, job.params, job.matrices)
        sent = job.dense_bytes(job.ranks) * share if form.sent is None else form.sent / times
        parts = buckets(job.params) if peer.bucketed else 1
        cover_s = c.hidden * job.step_s if peer.overlaps else 0.0
        return (Sync(times, sent, job.ranks, peer.collectives * parts, cover_s, 1 / parts),)
    dense, n = job.dense_bytes(job.workers), job.workers
    parts_sent = len(EDGES) - 1.0
    early = (parts_sent, c.hidden * job.step_s, EDGES[1], parts_sent) if form.overlap else (1.0, 0.0, 1.0)
    s, record = form.structure, METHODS[form.method]
    if record.silent:
        return ()
    resets, gradients = sync_times(form.method, s)
    if record.bytes_sent is not None:
        return (Sync(resets, record.bytes_sent(job.params, n), n, record.collectives, 0.0, 1.0),)
    if not record.has_ratio:
        first = (record.collectives, 0.0, 1.0) if record.collectives > 1 else early
        return (Sync(resets, dense / ratio_of(form.method, s), n, *first),)

    a_call = parse(form.compressor).collectives

    def several(parts: float, *hidden: float, ratio: float) -> tuple[float, ...]:
        return parts * call_collectives(form.method, ratio, a_call), *hidden

    def bytes_at(ratio: float) -> float:
        """Of GRBS in whole blocks; others are solved for the ratio."""
        blocks = form.compressor == Knobs.compressor
        return dense / (realised(ratio, job.params) if blocks else ratio)

    # a delay past the next reset hides no more, as the link must carry one in every H steps; nor does one past the next
    # step's gradients, which wait behind it
    hides = min(form.reset_delay, 1 if gradients else s.reset_interval)
    late = (1.0, hides * job.step_s, 0.0)
    first = late if form.reset_delay or gradients else early
    found = [Sync(resets, bytes_at(s.reset_ratio), n, *several(*first, ratio=s.reset_ratio))]
    if gradients:
        found.append(Sync(gradients, bytes_at(s.gradient_ratio), n, *several(*early, ratio=s.gradient_ratio)))
    return tuple(found)


def wire_s(sync: Sync, job: Job, c: Constants) -> float:
    """How long one synchronisation keeps the wire busy."""
    latency = stages(sync) * c.hop_s if job.latency_s is None else sync.collectives * job.latency_s
    return latency + 8 * max(0.0, sync.sent - job.burst) / (job.rate * (1.0 if job.payload else c.efficiency))


def exposure_s(sync: Sync, job: Job, c: Constants) -> float:
    """By how much one synchronisation lengthens the step that it is in."""
    wire = wire_s(sync, job, c)
    return sync.early * c.early_s + job.skew_s + max(host_s(sync, c), wire - sync.cover_s, sync.uncovered * wire)


def host_s(sync: Sync, c: Constants) -> float:
    """What one synchronisation takes from whoever computes, which nothing hides."""
    return stages(sync) * c.host_hop_s + c.host_s_per_byte * sync.sent


def stages(sync: Sync) -> float:
    """Messages that each worker waits for: 2 (n - 1) in a ring."""
    return sync.collectives * 2 * (sync.ranks - 1)


def overhead_s(form: Form, job: Job, c: Constants) -> float:
    """What the method itself costs a step, whatever the link."""
    if form.method not in PEER_TRAFFIC:
        passes = METHODS[form.method].passes / form.structure.reset_interval
        return job.model_bytes * c.pass_s_per_byte * passes
    peer = PEER_TRAFFIC[form.method]
    casts = c.cast_s_per_byte * peer.times if peer.casts else 0.0
    power = c.power_s if peer.rank else 0.0
    return power + job.model_bytes * (c.ddp_s_per_byte + casts + peer.rank * c.power_s_per_byte)
