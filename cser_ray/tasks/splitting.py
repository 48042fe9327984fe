"""Splits that come out the same on every machine, and the digits that show they did.

The seeds here are constants of the tasks, never a study's: every repeat of every method is judged on the same samples.
"""

import dataclasses
import hashlib
from collections.abc import Iterable, Iterator, Mapping

import numpy as np
import torch
from torch import Tensor

from cser_ray.tasks.base import Splits
from cser_ray.trees import leaves


def stratified_order(labels: Tensor, seed: int) -> Tensor:
    """Return a random order [N] of the samples in which every stretch holds the classes in proportion.

    `labels` is int64 [N] on the CPU. Cutting the order anywhere is a stratified split into parts of exact sizes.
    """
    shuffled = np.random.Generator(np.random.PCG64(seed)).permutation(len(labels))
    drawn = labels.numpy()[shuffled]
    sizes = np.bincount(drawn)
    rank = np.empty(len(drawn))
    rank[np.argsort(drawn, kind="stable")] = np.arange(len(drawn)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    # a sample's place is its share of its own class gone by, so that classes of all sizes keep pace
    place = (rank + 0.5) / sizes[drawn]
    return torch.from_numpy(shuffled[np.argsort(place, kind="stable")])


def fingerprint(parts: Iterable[object]) -> str:
    """Return 12 hexadecimal digits (SHA-256) of the parts in order: tensors by type, shape and values, others by repr.

    Floating-point values count to a thousandth, so that machines whose last bits differ still agree.
    """
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, Tensor):
            values = (part.double() * 1000).round().int() if part.is_floating_point() else part
            digest.update(f"{part.dtype} {tuple(part.shape)}\n".encode())
            digest.update(values.contiguous().numpy().data)
        else:
            digest.update(f"{part!r}\n".encode())
    return digest.hexdigest()[:12]


def splits_fingerprint(splits: Splits) -> str:
    """Return the `fingerprint` of every field of the three datasets, which must be dataclasses held in memory.

    A tuple or mapping of tensors counts as its tensors, a mapping's names besides.
    """
    datasets = (splits.train, splits.validation, splits.test)
    assert all(dataclasses.is_dataclass(dataset) for dataset in datasets)
    return fingerprint(part for dataset in datasets for value in vars(dataset).values() for part in _parts(value))


def _parts(value: object) -> Iterator[object]:
    if isinstance(value, Mapping):
        yield sorted(value)
    found: list[object] = list(leaves(value))
    yield from found or [value]
