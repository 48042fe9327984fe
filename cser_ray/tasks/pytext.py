"""pytext: the source text of Python's own standard library, character by character; present on every machine.

The text depends on the Python version, and so does `content_hash`: results of two versions are not compared.
"""

import functools
import hashlib
import os
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from cser_ray.tasks.base import Held, Splits, Task
from cser_ray.tasks.splitting import splits_fingerprint
from cser_ray.tasks.transformer import Transformer

LEFT_OUT = (
    *("site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"),
    *("idlelib", "lib2to3", "turtledemo", "distutils", "ensurepip", "encodings", "pydoc_data"),
)
"""Folders not read: other people's packages, tests, what some versions lack, and machine-made tables."""
LARGEST = 4_000_000
"""Bytes at which the corpus stops, in whole modules, sorted by name."""
WINDOW = 64
"""Characters in a sample; a sample's targets are the same characters moved on by one."""
HELD_OUT = 1024
"""Most windows in validation and in test, spread evenly over their text."""
SYMBOLS = "\n" + "".join(map(chr, range(32, 127)))
"""Symbols 1 to 96; symbol 0 stands for every other byte (tabs, the bytes of characters beyond ASCII)."""


@dataclass(frozen=True)
class Windows(Held):
    """Windows of `WINDOW` symbols of a text uint8 [L] that begin at `starts` [N]; no augmentation."""

    text: Tensor
    starts: Tensor

    def __len__(self) -> int:
        return len(self.starts)

    def made(self, index: Tensor, drawn: Tensor | None) -> tuple[Tensor, Tensor]:
        """Inputs and targets int64 [*index.shape, WINDOW]."""
        symbols = self.text[self.starts[index].unsqueeze(-1) + torch.arange(WINDOW + 1, device=self.text.device)].long()
        return symbols[..., :-1], symbols[..., 1:]


def modules(root: Path) -> list[Path]:
    """Paths under `root` of the modules read, relative and sorted; `_sysconfigdata*` describes a machine."""

    def walk() -> Iterator[Path]:
        for folder, below, files in os.walk(root):
            below[:] = [name for name in below if name not in LEFT_OUT]
            for name in files:
                if name.endswith(".py") and not name.startswith("_sysconfigdata"):
                    yield Path(folder, name).relative_to(root)

    return sorted(walk(), key=lambda path: path.parts)


def part_of(module: Path) -> str:
    """Say which split a module is in: by its name alone, so that a module added moves no other."""
    share = hashlib.sha256(module.as_posix().encode()).digest()[0] / 256
    return "test" if share < 0.06 else "validation" if share < 0.12 else "train"


def encode(text: bytes) -> Tensor:
    """Symbols uint8 [L] of a text; carriage returns before newlines are dropped."""
    table = np.zeros(256, np.uint8)
    table[np.frombuffer(SYMBOLS.encode(), np.uint8)] = np.arange(1, len(SYMBOLS) + 1)
    return torch.from_numpy(table[np.frombuffer(text.replace(b"\r\n", b"\n"), np.uint8)])


@functools.cache
def load() -> Splits:
    """Read the standard library this interpreter runs on; raises FileNotFoundError where its sources are not files."""
    root = Path(sysconfig.get_paths()["stdlib"])
    texts: dict[str, list[bytes]] = {"train": [], "validation": [], "test": []}
    size = 0
    for module in modules(root):
        source = (root / module).read_bytes()
        size += len(source)
        if size > LARGEST:
            break
        texts[part_of(module)].append(source)
    if not all(texts.values()):
        counts = ", ".join(f"{len(sources)} for {part}" for part, sources in texts.items())
        raise FileNotFoundError(
            f"pytext reads the source files of Python's standard library, and {root} holds too few ({counts}): "
            "run under a Python installed with its .py files, as python.org, conda and pyenv install it"
        )
    symbols = {part: encode(b"\n".join(sources)) for part, sources in texts.items()}

    def windows(part: str, most: int | None = None) -> Windows:
        starts = torch.arange(0, len(symbols[part]) - WINDOW, WINDOW)
        return Windows(symbols[part], starts[:: max(1, -(-len(starts) // most))] if most else starts)

    return Splits(windows("train"), windows("validation", HELD_OUT), windows("test", HELD_OUT))


class PyText(Task):
    """Next character in windows of 64, by a causal transformer (33 825 parameters); split by module, never by line."""

    name = "pytext"
    description = "the standard library's source text, character-level transformer: minutes a run, shows value"
    model_name = "transformer-32x2"
    classes = len(SYMBOLS) + 1
    batch_size = 16

    def model(self) -> nn.Module:
        return Transformer(self.classes, WINDOW, width=32, heads=2, layers=2, hidden=128)

    def splits(self) -> Splits:
        return load()

    def constant_loss(self) -> float:
        """Entropy in nats of the training text's symbols: the loss of predicting their frequencies everywhere."""
        train = load().train
        assert isinstance(train, Windows)
        share = torch.bincount(train.text.long()).double() / len(train.text)
        return float(torch.special.entr(share).sum())

    def content_hash(self) -> str:
        return splits_fingerprint(load())
