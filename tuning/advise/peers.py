"""What torch's own data parallelism sends: DDP, its 16-bit hooks, PowerSGD, post-local SGD; references of every plan."""

import math
from dataclasses import dataclass

FIRST_BUCKET, BUCKET = 1 << 20, 25 << 20
"""Bytes in DDP's first bucket and in the others (torch.nn.parallel.DistributedDataParallel, bucket_cap_mb)."""
MATRIX_SIDE = 512
"""Where no shapes are known, the model is taken for square matrices of this side."""


@dataclass(frozen=True)
class PeerTraffic:
    """How a peer communicates. `times`: synchronisations a step at interval 1. `bits`: of a value on the wire.

    `rank`: PowerSGD's, 0 for all others. `collectives`: a bucket. `overlaps`: its buckets start during backward.
    """

    times: float = 1.0
    bits: int = 32
    rank: int = 0
    collectives: int = 1
    bucketed: bool = True
    overlaps: bool = True

    @property
    def casts(self) -> bool:
        """Whether values are cast before and after they travel."""
        return self.bits < 32


PEER_TRAFFIC = {
    "ddp": PeerTraffic(),
    "ddp-fp16": PeerTraffic(bits=16),
    "ddp-bf16": PeerTraffic(bits=16),
    "ddp-bf16-accumulate4": PeerTraffic(bits=16, times=1 / 4),
    "powersgd-1": PeerTraffic(rank=1, collectives=3),
    "powersgd-4": PeerTraffic(rank=4, collectives=3),
    "post-local-sgd": PeerTraffic(bucketed=False, overlaps=False),
}
"""Peers by the names that `cser-ray bench links` gives them."""
DENSE = ("ddp", "ddp-fp16", "ddp-bf16")
"""What a user has without another optimizer: the best of them is what a gain is over."""
GAIN = 0.05
"""A gain in step time below this is not worth another optimizer."""


def buckets(params: int) -> int:
    """How many buckets DDP cuts a model of fp32 parameters into."""
    return 1 + math.ceil(max(0, 4 * params - FIRST_BUCKET) / BUCKET)


def sent_share(peer: PeerTraffic, params: int, matrices: tuple[tuple[int, int], ...] | None) -> float:
    """Bytes of one synchronisation over those of dense fp32.

    PowerSGD sends rank * (rows + columns) values of a matrix where that is under half of it, else the matrix (its
    min_compression_rate is 2); of vectors, all.
    """
    if not peer.rank:
        return peer.bits / 32
    if matrices is None:
        return min(1.0, 2 * peer.rank / MATRIX_SIDE)
    sent = 0
    for rows, columns in matrices:
        rank = min(peer.rank, rows, columns)
        small = rank * (rows + columns)
        sent += small if 2 * small < rows * columns else rows * columns
    return sent / params
