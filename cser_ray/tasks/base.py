"""What a task is: a model, three splits of data, and a loss.

A task of your own is one small class with these members and one line in `TASKS` (docs/adopt.md shows one).
"""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Protocol, Self

import torch
from torch import Tensor, nn


class Dataset(Protocol):
    """Indexed samples, read a batch at a time for many workers at once."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def batch(self, index: Tensor, generators: Sequence[torch.Generator] | None = None) -> tuple[Tensor, Tensor]:
        """Return (inputs [*index.shape, ...], targets [*index.shape, ...]) for int64 sample numbers `index` [rows, b].

        `generators`: one a row while training, for random augmentation; None when evaluating (no augmentation).
        """
        ...


@dataclass(frozen=True)
class Held(Dataset):
    """Samples held in memory as tensors; `batch` gathers them on the tensors' device, from an index there.

    A batch is `made` of the samples' numbers and of what was drawn for them. Drawing is the processor's, making the
    tensors' device's alone, so that a GPU can do all of it at one launch.
    """

    def drawn(self, index: Tensor, generators: Sequence[torch.Generator]) -> Tensor | None:
        """Random numbers for the augmentation of `index` [rows, b], where the generators are; None if there is none."""
        return None

    @abstractmethod
    def made(self, index: Tensor, drawn: Tensor | None) -> tuple[Tensor, Tensor]:
        """The batch as `batch` has it, without waiting for the device; `drawn`: there, None for no augmentation."""
        ...

    def batch(self, index: Tensor, generators: Sequence[torch.Generator] | None = None) -> tuple[Tensor, Tensor]:
        """See `Dataset.batch`."""
        drawn = None if generators is None else self.drawn(index, generators)
        return self.made(index, None if drawn is None else drawn.to(index.device))

    def to(self, device: torch.device) -> Self:
        """The same samples on a device."""
        held = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(self, **{name: v.to(device) for name, v in held.items() if isinstance(v, Tensor)})


@dataclass(frozen=True)
class TensorDataset(Held):
    """Samples held in memory: inputs [N, ...], targets [N, ...]; no augmentation."""

    inputs: Tensor
    targets: Tensor

    def __len__(self) -> int:
        return len(self.inputs)

    def made(self, index: Tensor, drawn: Tensor | None) -> tuple[Tensor, Tensor]:
        return self.inputs[index], self.targets[index]


@dataclass(frozen=True)
class Splits:
    """Training samples are sharded over the workers; validation chooses; test is read once, for the chosen."""

    train: Dataset
    validation: Dataset
    test: Dataset


class Task(Protocol):
    """A learning problem: what `cser-ray tune --task NAME` trains. Attributes may be properties or plain values.

    A class may have `study_defaults`, a mapping of settings (of `tuning.study.study.Study`) that a study of it takes where
    the user says nothing.
    """

    @property
    def name(self) -> str:
        """The name that users type."""
        ...

    @property
    def description(self) -> str:
        """One line for `cser-ray tasks`."""
        ...

    @property
    def batch_size(self) -> int:
        """Samples a worker and step, by default."""
        ...

    @property
    def model_name(self) -> str:
        """The name of the model that `model()` builds, as the results store shows it."""
        ...

    @property
    def classes(self) -> int:
        """Number of classes; targets are int64 in [0, classes)."""
        ...

    @abstractmethod
    def model(self) -> nn.Module:
        """A freshly initialised module, drawn from torch's global generator (the caller seeds it)."""
        ...

    @abstractmethod
    def splits(self) -> Splits:
        """The three splits. May read files: raises FileNotFoundError with a sentence that says how to get them."""
        ...

    @abstractmethod
    def constant_loss(self) -> float:
        """Loss of the constant predictor in nats: ln(classes), or the unigram entropy of text; divergence is 1.3 times it."""
        ...

    @abstractmethod
    def content_hash(self) -> str:
        """12 hexadecimal digits that change with the data; results of different hashes are never compared."""
        ...


def losses(outputs: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of each sample [rows, b] in nats, from logits [rows, b, ..., classes] and targets [rows, b, ...].

    A text sample's loss is the mean over its positions.
    """
    flat = nn.functional.cross_entropy(outputs.flatten(0, -2), targets.flatten(), reduction="none")
    return flat.view(targets.shape).flatten(2).mean(2) if targets.dim() > 2 else flat.view(targets.shape)


def correct(outputs: Tensor, targets: Tensor) -> Tensor:
    """Share of right answers of each sample [rows, b], in [0, 1]; shapes as in `losses`."""
    right = (outputs.argmax(-1) == targets).float()
    return right.flatten(2).mean(2) if targets.dim() > 2 else right
