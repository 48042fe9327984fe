"""Compressors: what is put on the wire. A new one is one file and one line in `COMPRESSORS`."""

from collections.abc import Callable

from cser_ray.compressors.base import Compressor, Message, SharedCompressor
from cser_ray.compressors.block_sign import BlockSign
from cser_ray.compressors.grbs import GRBS
from cser_ray.compressors.identity import Identity, Zero
from cser_ray.compressors.qsgd import QSGD
from cser_ray.compressors.random_k import RandomK
from cser_ray.compressors.top_k import TopK

COMPRESSORS: dict[str, Callable[..., Compressor]] = {
    "grbs": GRBS,
    "random-k": RandomK,
    "top-k": TopK,
    "block-sign": BlockSign,
    "qsgd": QSGD,
    "identity": Identity,
    "zero": Zero,
}
"""Name -> class. Every entry is held to the same laws by tests/contract."""

__all__ = [
    "COMPRESSORS",
    "GRBS",
    "QSGD",
    "BlockSign",
    "Compressor",
    "Identity",
    "Message",
    "RandomK",
    "SharedCompressor",
    "TopK",
    "Zero",
]
