"""What a task is: a model, three splits of data, and a loss.

A task of your own is one small class with these members and one line in `TASKS` (docs/adopt.md shows one).
"""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Protocol, Self

import torch
from torch import Tensor, nn

from cser_ray.tasks.losses import correct, losses, squared_errors
from cser_ray.trees import Tree, leaves, mapped

__all__ = ["Dataset", "Held", "Splits", "Task", "TensorDataset", "correct", "losses", "squared_errors"]


class Dataset(Protocol):
    """Indexed samples, read a batch at a time for many workers at once."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def batch(self, index: Tensor, generators: Sequence[torch.Generator] | None = None) -> tuple[Tree, Tree]:
        """Return (inputs [*index.shape, ...], targets [*index.shape, ...]) for int64 sample numbers `index` [rows, b].

        Inputs are a tensor, a tuple of tensors, which the model is called on in their order, or a mapping of tensors,
        which it is called on by name. Targets are what the loss and the metric take.

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
    def made(self, index: Tensor, drawn: Tensor | None) -> tuple[Tree, Tree]:
        """The batch as `batch` has it, without waiting for the device; `drawn`: there, None for no augmentation."""
        ...

    def batch(self, index: Tensor, generators: Sequence[torch.Generator] | None = None) -> tuple[Tree, Tree]:
        """See `Dataset.batch`."""
        drawn = None if generators is None else self.drawn(index, generators)
        return self.made(index, None if drawn is None else drawn.to(index.device))

    def to(self, device: torch.device) -> Self:
        """The same samples on a device."""
        held = {f.name: getattr(self, f.name) for f in fields(self)}
        trees = {name: v for name, v in held.items() if any(True for _ in leaves(v))}
        return replace(self, **{name: mapped(lambda t: t.to(device), v) for name, v in trees.items()})


@dataclass(frozen=True)
class TensorDataset(Held):
    """Samples held in memory: inputs [N, ...], targets [N, ...], or tuples or mappings of such; no augmentation."""

    inputs: Tree
    targets: Tree

    def __len__(self) -> int:
        return len(next(leaves(self.inputs)))

    def made(self, index: Tensor, drawn: Tensor | None) -> tuple[Tree, Tree]:
        return mapped(lambda t: t[index], self.inputs), mapped(lambda t: t[index], self.targets)


@dataclass(frozen=True)
class Splits:
    """Training samples are sharded over the workers; validation chooses; test is read once, for the chosen."""

    train: Dataset
    validation: Dataset
    test: Dataset


class Task(Protocol):
    """A learning problem: what `cser-ray tune --task NAME` trains. Attributes may be properties or plain values.

    Besides, a class may have

    - `losses(outputs, targets)`: the loss of each sample, [rows, b] from what the model returned, [rows, b, ...], and the
      targets, [rows, b, ...]; in place of cross-entropy of logits, or of what a model returns as `.loss`;
    - `metric`: what it is judged by, a name of `cser_ray.tasks.metrics.METRICS` or a `Metric`. Without it, accuracy of a
      task that has `classes`, the loss of another;
    - `classes`: the number of classes of one whose targets are int64 in [0, classes);
    - `loss_unit`: of the loss, as text; "nats" where the loss is not its own;
    - `study_defaults`, a mapping of settings (of `tuning.study.study.Study`) that a study of it takes where the user says
      nothing.
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
        """Loss of the constant predictor: ln(classes), unigram entropy of text, variance of the targets of a regression.

        A run diverges above it by 30 %. Infinity where there is no such number: then only by a loss that is not finite.
        """
        ...

    @abstractmethod
    def content_hash(self) -> str:
        """12 hexadecimal digits that change with the data; results of different hashes are never compared."""
        ...
