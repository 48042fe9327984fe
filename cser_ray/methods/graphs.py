"""The records of the systems whose workers send to neighbours in a graph, here a ring. Needs no torch."""

from cser_ray.methods.record import Method
from cser_ray.structure import Structure, overall_ratio

_COMPRESSOR = {"compressor": "reset_ratio"}


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


_RECORDS = (
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
GRAPHS = {method.name: method for method in _RECORDS}
"""Name -> record."""
