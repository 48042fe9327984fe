"""Compressors: what is put on the wire.

A new one is one file and one line in `COMPRESSORS`; another package adds one by an entry point of the group
`cser_ray.compressors`.
"""

from collections.abc import Callable

from cser_ray.compressors.base import AgreeingCompressor, Budgeted, Compressor, Message, SharedCompressor
from cser_ray.compressors.block_sign import BlockSign
from cser_ray.compressors.chunked_top_k import ChunkedTopK
from cser_ray.compressors.formatted import Formatted
from cser_ray.compressors.grbs import GRBS
from cser_ray.compressors.identity import Identity, Zero
from cser_ray.compressors.qsgd import QSGD
from cser_ray.compressors.random_k import RandomK
from cser_ray.compressors.shared_top import SharedTop
from cser_ray.compressors.top_k import TopK
from cser_ray.registry import Registry

COMPRESSORS: Registry[Callable[..., Compressor]] = Registry(
    "compressor",
    "cser_ray.compressors",
    {
        "grbs": GRBS,
        "random-k": RandomK,
        "top-k": TopK,
        "chunked-top-k": ChunkedTopK,
        "shared-top": SharedTop,
        "block-sign": BlockSign,
        "qsgd": QSGD,
        "identity": Identity,
        "zero": Zero,
        "formatted": Formatted,
    },
)
"""Name -> class. Every entry is held to the same laws by tests/contract."""

__all__ = [
    "COMPRESSORS",
    "GRBS",
    "QSGD",
    "AgreeingCompressor",
    "BlockSign",
    "Budgeted",
    "ChunkedTopK",
    "Compressor",
    "Formatted",
    "Identity",
    "Message",
    "RandomK",
    "SharedCompressor",
    "SharedTop",
    "TopK",
    "Zero",
]
