"""The records of the systems of other papers: what each sends is part of it, so most have one ratio, which depends on n."""

from collections.abc import Callable, Mapping
from typing import Any

from cser_ray.communication.wire import dense_bytes, shard_size
from cser_ray.methods.record import Method, Travels
from cser_ray.structure import Structure, overall_ratio

SIGN_BLOCK, QSGD_BUCKET, ADACOMP_BIN = 4096, 512, 500
"""Coordinates that share a scale, a norm and a maximum, where the optimizers are given no other numbers."""
_TWO_WAY: Travels = "all-to-all and all-gather"


def dist_ef_bytes(d: int, n: int) -> float:
    """A bit a coordinate and one scale a shard, to the owners and back."""
    return 2 * (n - 1) * (shard_size(d, n) / 8 + 4)


def dist_ef_block_bytes(d: int, n: int) -> float:
    """A bit a coordinate and one scale a block, to the owners and back."""
    size = shard_size(d, n)
    length = -(-size // -(-size // SIGN_BLOCK))
    return 2 * (n - 1) * (size / 8 + 4 * -(-size // length))


def signum_bytes(d: int, n: int) -> float:
    """A bit a coordinate, to the owners and back."""
    return 2 * (n - 1) * shard_size(d, n) / 8


def qsgd_bytes(d: int, n: int) -> float:
    """Half a byte a coordinate and one norm a bucket, to everybody."""
    return (n - 1) * (-(-d // 2) + 4 * -(-d // QSGD_BUCKET))


def adacomp_bytes(d: int, n: int) -> float:
    """One coordinate a bin, its place in 4 bytes, to everybody; what is really sent depends on the gradients."""
    return (n - 1) * 4 * -(-d // ADACOMP_BIN)


def _at_eight(sent: Callable[[int, int], float]) -> Callable[[Structure], float]:
    """The ratio of a large model at the 8 workers of a study that names no other number, to four digits."""
    ratio = float(f"{dense_bytes(10**9, 8) / sent(10**9, 8):.4g}")
    return lambda structure: ratio


def _fixed(sent: Callable[[int, int], float]) -> Mapping[str, Any]:
    return {"formula": _at_eight(sent), "bytes_sent": sent}


def _resnet18_at_rank_2(structure: Structure) -> float:
    """11 173 962 parameters as ResNet-18 has them for CIFAR-10, over 82 260 values in factors and vectors."""
    return 135.8


_RECORDS = (
    Method(
        name="dist-ef-sgd",
        own_step=True,
        help="error feedback around signs, to the server and back: R_C = 32, whatever n",
        rule="sends a bit a coordinate each way every step, so R_C = 32",
        **_fixed(dist_ef_bytes),
        optimizer="cser_ray.optimizers.systems.dist_ef_sgd:DistEFSGD",
        look=("ef-sgd", "up"),
        source="Zheng, Huang and Kwok, arXiv 1905.10936, Algorithms 2 and 3",
        travels=_TWO_WAY,
        memory=1,
        sharded=1,
        sent="2(n-1) (d/8 + 4n) / n",
        collectives=2,
    ),
    Method(
        name="dist-ef-block-sgd",
        own_step=True,
        help="dist-ef-sgd with a scale a block: R_C = 31.75, whatever n",
        rule="sends a bit a coordinate and a scale a block each way every step, so R_C = 31.75",
        **_fixed(dist_ef_block_bytes),
        optimizer="cser_ray.optimizers.systems.dist_ef_sgd:DistEFBlockSGD",
        look=("ef-sgd", "down"),
        source="Zheng, Huang and Kwok, arXiv 1905.10936, dist-EF-blockSGD",
        travels=_TWO_WAY,
        memory=1,
        sharded=1,
        sent="2(n-1)/n (d/8 + 4d/4096)",
        collectives=2,
    ),
    Method(
        name="mem-sgd",
        help="error feedback around each worker's largest coordinates; R_C = RC1",
        rule="sends one coordinate in n R_C every step: RC1 = R_C",
        formula=overall_ratio,
        optimizer="cser_ray.optimizers.systems.mem_sgd:MemSGD",
        knobs=("reset_ratio",),
        arguments={"ratio": "reset_ratio"},
        variants=("schedule",),
        passes=8,
        look=("ef-sgd", "diamond"),
        source="Stich, Cordonnier and Jaggi, arXiv 1809.07599, Algorithm 1",
        travels="all-gather",
        memory=1,
        sent="(n-1) 8k with k = d / (n R_C)",
    ),
    Method(
        name="signum",
        own_step=True,
        help="the majority's sign of each coordinate: R_C = 32; wants learning rates like Adam's",
        rule="sends a bit a coordinate each way every step, so R_C = 32",
        **_fixed(signum_bytes),
        optimizer="cser_ray.optimizers.systems.signum:Signum",
        look=("other", "square"),
        source="Bernstein et al., arXiv 1802.04434 and 1810.05291",
        travels=_TWO_WAY,
        sent="2(n-1)/n d/8",
        collectives=2,
    ),
    Method(
        name="qsgd",
        help="gradients rounded at random to 4 bits, everybody's to everybody: R_C = 15.75 / n",
        rule="sends 4 bits a coordinate to everybody every step, so R_C = 15.75 / n",
        **_fixed(qsgd_bytes),
        optimizer="cser_ray.optimizers.systems.qsgd:QuantisedSGD",
        look=("other", "diamond"),
        source="Alistarh et al., arXiv 1610.02132, Algorithm 1",
        travels="all-gather",
        sent="(n-1) (d/2 + 4d/512)",
    ),
    Method(
        name="ecq-sgd",
        help="qsgd that makes up for a fading share of earlier rounding: R_C = 15.75 / n",
        rule="sends 4 bits a coordinate to everybody every step, so R_C = 15.75 / n",
        **_fixed(qsgd_bytes),
        optimizer="cser_ray.optimizers.systems.ecq_sgd:ECQSGD",
        look=("other", "circle"),
        source="Wu et al., arXiv 1806.08054",
        travels="all-gather",
        memory=1,
        sent="(n-1) (d/2 + 4d/512)",
    ),
    Method(
        name="adacomp",
        help="signs of what reaches its bin's maximum; how much that is follows the gradients",
        rule="sends what reaches its bin's maximum, so R_C = 1000 / n at one coordinate a bin, and less at more",
        **_fixed(adacomp_bytes),
        optimizer="cser_ray.optimizers.systems.adacomp:AdaComp",
        look=("other", "cross"),
        source="Chen et al., arXiv 1712.02679, Algorithm 2",
        travels="all-gather",
        memory=1,
        sent="(n-1) (4 + 4k + 4 a layer), k of the worker that chooses most",
        collectives=2,
    ),
    Method(
        name="dgc",
        own_step=True,
        help="deep gradient compression: the largest coordinates, momentum inside the error; R_C = RC1",
        rule="sends the largest coordinates, one in n RC1, every step: RC1 = R_C",
        formula=overall_ratio,
        optimizer="cser_ray.optimizers.systems.dgc:DGC",
        knobs=("reset_ratio",),
        arguments={"ratio": "reset_ratio"},
        variants=("schedule",),
        passes=6,
        look=("ef-sgd", "star"),
        source="Lin et al., arXiv 1712.01887; code synxlin/deep-gradient-compression",
        travels="all-gather",
        memory=1,
        sent="(n-1) 8k with k = d / (n R_C)",
    ),
    Method(
        name="powersgd",
        help="PowerSGD of rank 2: each matrix of gradients as two thin factors, with error feedback",
        rule="sends factors of rank 2 of each matrix, so R_C follows from the model: 136 for ResNet-18",
        formula=_resnet18_at_rank_2,
        optimizer="cser_ray.optimizers.systems.powersgd:PowerSGD",
        passes=8,
        look=("ef-sgd", "cross"),
        source="Vogels et al., arXiv 1905.13727; code epfml/powersgd",
        memory=1,
        collectives=2,
        sent="2(n-1)/n 4 (2 (rows + columns) of each matrix + vectors)",
    ),
)
SYSTEMS = {method.name: method for method in _RECORDS}
"""Name -> record."""
