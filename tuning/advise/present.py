"""A program that runs already: its own step is measured, and the steps of all other forms are predicted from it.

What is measured takes the place of what was fitted elsewhere. The link's rate and latency bound what a collective can take
from the processor; what the present form exposes says how much of its sending hides, or how long ranks wait for each other.
"""

from dataclasses import dataclass, replace

from cser_ray.budget import Structure
from tuning.advise.constants import Constants
from tuning.advise.lines import Line
from tuning.advise.peers import PEER_TRAFFIC
from tuning.advise.step_time import Form, Job, Prediction, Sync, host_s, synchronisations, wire_s


@dataclass(frozen=True)
class Present:
    """How the program communicates now. `name`: a peer's, such as ddp, else in words. Seconds and bytes are of a step.

    `exposed_s`: what the step waits for the network, None where it cannot be told; `most_s`: what it can be at most.
    `sent`: bytes that leave a rank, `collectives`: calls; 0 where none was counted.
    """

    name: str
    step_s: float
    exposed_s: float | None
    most_s: float
    sent: float = 0.0
    collectives: float = 0.0

    @property
    def compute_s(self) -> float:
        """The step without what it exposes, a hundredth of it at least; all of it where that is not known."""
        return max(self.step_s - (self.exposed_s or 0.0), 0.01 * self.step_s)

    @property
    def form(self) -> Form | None:
        """The peer that it is; None where the model has none of the kind."""
        return Form(self.name, sent=self.sent or None) if self.name in PEER_TRAFFIC else None


def anchored(present: Present, job: Job, c: Constants) -> tuple[Job, Constants]:
    """The job and the constants with which the model says of the present form what was measured.

    `job.latency_s` and `job.rate` are measured too. What waits longer than the whole wire takes is not the bytes' doing:
    it becomes `skew_s`, which every synchronisation pays, however little it sends.
    """
    assert job.latency_s is not None, "a measured link has a latency"
    # a small all-reduce took latency_s in all, and a byte 8 / rate: the processor had no longer with either
    stage_s = job.latency_s / (2 * (job.ranks - 1))
    job = replace(job, step_s=present.compute_s)
    c = replace(
        c, host_hop_s=min(c.host_hop_s, stage_s), host_s_per_byte=min(c.host_s_per_byte, 8 / job.rate),
        source=f"where this program does not say it: {c.source}",
    )  # fmt: skip
    form, exposed_s = present.form, present.exposed_s
    if exposed_s is None:
        return job, c
    sync = synchronisations(form, job, c)[0] if form else Sync(1.0, present.sent, job.ranks, present.collectives)
    wire = wire_s(sync, job, c) if sync.sent else exposed_s  # nothing was counted: it says nothing of the link
    job = replace(job, skew_s=max(0.0, exposed_s - wire))
    return job, c if form is None else _as_hidden(sync, min(exposed_s, wire), wire, job, c)


def _as_hidden(sync: Sync, exposed_s: float, wire: float, job: Job, c: Constants) -> Constants:
    """The constants with which a form that overlaps exposes so much of its wire, and its own overhead is in the step."""
    covered = min(1.0, (wire - exposed_s) / job.step_s)
    host = host_s(sync, c)
    # the floor: what never hides, or starts too late to. Where only that is exposed, more may hide than did
    floor = max(min(host, exposed_s), sync.uncovered * wire)
    share = min(1.0, exposed_s / host) if host else 1.0
    return replace(
        c, hidden=max(c.hidden, covered) if exposed_s <= floor else covered, ddp_s_per_byte=0.0,
        host_hop_s=share * c.host_hop_s, host_s_per_byte=share * c.host_s_per_byte,
    )  # fmt: skip


def with_present(present: Present, job: Job, lines: list[Line]) -> list[Line]:
    """The lines with the present form's, as measured: in the place of its prediction, or first."""
    form = Form(present.name, Structure())
    now = Line(Prediction(form, present.compute_s, present.step_s, present.collectives, present.sent), measured=True)
    if any(line.form.method == present.name for line in lines):
        return [now if line.form.method == present.name else line for line in lines]
    return [now, *lines]
