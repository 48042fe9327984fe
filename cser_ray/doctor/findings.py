"""What the records of all ranks say together: the step, what of it waits for what, the link, and who is late."""

from collections.abc import Sequence
from dataclasses import dataclass

from cser_ray.doctor.noise_scale import NoiseScale, noise_scale
from cser_ray.doctor.record import Link, RankRecord

LATE_SHARE = 0.05
"""A rank is a straggler where the others wait so much of a step longer than it does."""

ASIDE = 0.02
"""Collectives that take less than this share of a step on streams of their own may be exposed or not: it is no matter."""
HOOKS = {
    "bf16_compress_hook": "ddp-bf16",
    "fp16_compress_hook": "ddp-fp16",
    "builtincommhooktype.fp16_compress": "ddp-fp16",
    "allreduce_hook": "ddp",
    "builtincommhooktype.allreduce": "ddp",
}
"""DDP's comm hooks, by the names in its log, as `cser-ray plan` names them."""


@dataclass(frozen=True)
class Straggler:
    """The rank that the others wait for, and for how many seconds a step."""

    rank: int
    host: str
    late_s: float


@dataclass(frozen=True)
class LinkFound:
    """The link as the ranks' own backend uses it: `rate` of payload in bits/s each way, `latency_s` of a small all-reduce."""

    rate: float
    latency_s: float


@dataclass(frozen=True)
class Findings:
    """Of a whole run. Seconds are of a step, means over the counted steps; None where a thing cannot be told.

    `wait_s`: mean over the ranks. `network_s`: what every rank waits, the one that waits least included: nobody is late
    there. `others_s`: the rest of the mean, spent waiting for slower ranks. `compute_s`: the slowest rank's step without
    its waiting.
    """

    records: tuple[RankRecord, ...]
    world: int
    hosts: int
    step_s: float
    compute_s: float
    wait_s: float | None
    network_s: float | None
    others_s: float | None
    straggler: Straggler | None
    link: LinkFound | None
    noise: NoiseScale | None = None

    @property
    def first(self) -> RankRecord:
        """The record of the lowest rank, which speaks of what is equal on all."""
        return self.records[0]

    @property
    def manner(self) -> str:
        """How it averages, by the name that `cser-ray plan` has for it where it has one: ddp, ddp-bf16, ddp-fp16."""
        parallel = self.first.parallel
        ddp = [said for said in parallel if said.startswith("DDP")]
        if len(parallel) == len(ddp) == 1:
            hook = ddp[0].partition("comm hook ")[2].partition(",")[0].lower()
            return "ddp" if not hook else HOOKS.get(hook, f"DDP with {hook}")
        return " and ".join(said.partition(",")[0].partition(" ")[0] for said in parallel) or "your own loop"

    @property
    def exposed_s(self) -> float | None:
        """What a step waits for the network, where what of it may hide on streams of its own is small beside it."""
        return None if self.network_s is None or self.side_s > ASIDE * self.step_s else self.network_s

    @property
    def most_s(self) -> float:
        """What a step may wait for the network at most, whatever of its collectives hides."""
        return self.step_s if self.network_s is None else min(self.step_s, self.network_s + self.side_s)

    @property
    def side_s(self) -> float:
        """Seconds of collectives on CUDA streams of their own, of the rank that has least of them."""
        return min(record.side_s for record in self.records)

    @property
    def processes_per_host(self) -> int:
        """k, where there are several hosts with equally many ranks; else 1, each rank being a worker of its own."""
        return self.world // self.hosts if self.hosts > 1 and self.world % self.hosts == 0 else 1


def find(records: Sequence[RankRecord]) -> Findings:
    """Of one record a rank, one at least."""
    waits = [record.wait_s for record in records if record.wait_s is not None]
    known = len(waits) == len(records)
    mean = sum(waits) / len(waits) if known else None
    network = min(waits) if known else None
    links = [found for record in records if record.link and (found := link_of(record.link, record.world))]
    return Findings(
        tuple(records),
        max(record.world for record in records),
        len({record.host for record in records}),
        sum(record.step_s for record in records) / len(records),
        max(record.compute_s for record in records),
        mean,
        network,
        None if mean is None or network is None else mean - network,
        straggler(records) if known else None,
        links[0] if links else None,
        noise_scale(records),
    )


def straggler(records: Sequence[RankRecord]) -> Straggler | None:
    """Who waits least while the others wait for it; None where all wait about as long, or one rank is alone."""
    if len(records) < 2:
        return None
    least = min(records, key=lambda record: record.wait_s or 0.0)
    others = [record.wait_s or 0.0 for record in records if record is not least]
    late_s = sum(others) / len(others) - (least.wait_s or 0.0)
    return Straggler(least.rank, least.host, late_s) if late_s > LATE_SHARE * least.step_s else None


def link_of(link: Link, world: int) -> LinkFound | None:
    """Rate and latency of two all-reduces over a ring, each of latency + sent / rate; None where the larger was faster."""
    if not link.large_s > link.small_s or world < 2:
        return None
    factor = 2 * (world - 1) / world
    per_byte = (link.large_s - link.small_s) / (factor * (link.large_bytes - link.small_bytes))
    return LinkFound(8 / per_byte, max(0.0, link.small_s - factor * link.small_bytes * per_byte))
