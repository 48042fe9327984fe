"""Compressors: what is put on the wire.

A new one is one file and one line in `COMPRESSORS`; another package adds one by an entry point of the group
`cser_ray.compressors`. Classes are imported when they are asked for: names and texts cost no torch.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from cser_ray.registry import Registry, load

if TYPE_CHECKING:
    from cser_ray.compressors.base import (
        AgreeingCompressor,
        Budgeted,
        Compressor,
        Message,
        RememberingCompressor,
        SharedCompressor,
    )
    from cser_ray.compressors.block_sign import BlockSign
    from cser_ray.compressors.chunked_top_k import ChunkedTopK
    from cser_ray.compressors.formatted import Formatted
    from cser_ray.compressors.grbs import GRBS
    from cser_ray.compressors.identity import Identity, Zero
    from cser_ray.compressors.qsgd import QSGD
    from cser_ray.compressors.random_k import RandomK
    from cser_ray.compressors.shared_top import SharedTop
    from cser_ray.compressors.top_k import TopK
    from cser_ray.compressors.two_way import TwoWay

_CLASSES = {
    "grbs": "grbs:GRBS",
    "random-k": "random_k:RandomK",
    "top-k": "top_k:TopK",
    "chunked-top-k": "chunked_top_k:ChunkedTopK",
    "shared-top": "shared_top:SharedTop",
    "block-sign": "block_sign:BlockSign",
    "qsgd": "qsgd:QSGD",
    "identity": "identity:Identity",
    "zero": "identity:Zero",
    "formatted": "formatted:Formatted",
}
_PLACES = {path.partition(":")[2]: path.partition(":")[0] for path in _CLASSES.values()} | dict.fromkeys(
    ("AgreeingCompressor", "Budgeted", "Compressor", "Message", "RememberingCompressor", "SharedCompressor"), "base"
)
_PLACES |= {"TwoWay": "two_way", "Remembered": "remembered"}  # no entries: one needs a memory, and one has it
"""Name -> the module that has it."""

COMPRESSORS: "Registry[Callable[..., Compressor]]" = Registry(
    "compressor", "cser_ray.compressors", {name: f"cser_ray.compressors.{path}" for name, path in _CLASSES.items()}
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
    "Remembered",
    "RememberingCompressor",
    "SharedCompressor",
    "SharedTop",
    "TopK",
    "TwoWay",
    "Zero",
]


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = load(f"cser_ray.compressors.{_PLACES[name]}:{name}")
    return value
