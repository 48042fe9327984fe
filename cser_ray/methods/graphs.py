"""The records of systems with factors, momentum inside the error, or neighbours in a graph. Needs no torch."""

from cser_ray.methods.record import Method
from cser_ray.structure import Structure, overall_ratio

_RATIO = {"ratio": "reset_ratio"}
_COMPRESSOR = {"compressor": "reset_ratio"}


def _resnet18_at_rank_2(structure: Structure) -> float:
    """11 173 962 parameters as ResNet-18 has them for CIFAR-10, over 82 260 values in factors and vectors."""
    return 135.8


def _ring_of_eight(structure: Structure) -> float:
    return 7 / 8


def ring_messages(n: int) -> int:
    """To how many neighbours a worker of a ring of n sends."""
    return min(2, n - 1)


def _ring_spread(n: int) -> float:
    """Messages of V to the neighbours in a ring, over the 2 (n - 1)/n V of a ring all-reduce."""
    return ring_messages(n) * n / (2 * (n - 1)) if n > 1 else 1.0


def _whole_models(d: int, n: int) -> float:
    return 4.0 * d * ring_messages(n)


GRAPHS = (
    Method(
        name="dgc",
        help="deep gradient compression: the largest coordinates, momentum inside the error; R_C = RC1",
        rule="sends the largest coordinates, one in n RC1, every step: RC1 = R_C",
        formula=overall_ratio,
        optimizer="cser_ray.optimizers.systems.dgc:DGC",
        knobs=("reset_ratio",),
        arguments=_RATIO,
        passes=6,
        look=("ef-sgd", "diamond"),
        source="Lin et al., arXiv 1712.01887; code synxlin/deep-gradient-compression",
        travels="all-gather",
        memory=1,
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
        travels="all-reduce",
        memory=1,
        sent="2(n-1)/n 4 (2 (rows + columns) of each matrix + vectors)",
    ),
    Method(
        name="d-psgd",
        help="D-PSGD on a ring: models averaged with two neighbours every step; R_C = (n-1)/n",
        rule="sends the whole model to two neighbours every step, so R_C = 7/8 at 8 workers",
        formula=_ring_of_eight,
        optimizer="cser_ray.optimizers.systems.d_psgd:DPSGD",
        look=("local-sgd", "circle"),
        source="Lian et al., arXiv 1705.09056",
        travels="neighbours",
        sent="2 4d; 4d where n = 2",
        bytes_sent=_whole_models,
    ),
    Method(
        name="choco-sgd",
        help="CHOCO-SGD on a ring: gossip about what neighbours know of each other's models; R_C = RC1",
        rule="sends a block to two neighbours every step: RC1 = R_C",
        formula=overall_ratio,
        optimizer="cser_ray.optimizers.systems.choco_sgd:ChocoSGD",
        knobs=("reset_ratio",),
        arguments=_COMPRESSOR,
        passes=6,
        look=("local-sgd", "square"),
        source="Koloskova et al., arXiv 1902.00340; code epfml/ChocoSGD",
        travels="neighbours",
        memory=2,
        spread=_ring_spread,
    ),
    Method(
        name="deepsqueeze",
        help="DeepSqueeze on a ring: gossip about compressed models, with error feedback; R_C = RC1",
        rule="sends a block to two neighbours every step: RC1 = R_C",
        formula=overall_ratio,
        optimizer="cser_ray.optimizers.systems.deep_squeeze:DeepSqueeze",
        knobs=("reset_ratio",),
        arguments=_COMPRESSOR,
        passes=5,
        look=("local-sgd", "diamond"),
        source="Tang et al., arXiv 1907.07346; code epfml/ChocoSGD",
        travels="neighbours",
        memory=1,
        spread=_ring_spread,
    ),
)
