"""What stands beside the methods at every ratio: dense training with the same local step, and what silence reaches.

Methods are measured against the synchronous method whose local step is theirs (`Method.reference`): SGD's against sgd,
AdamW's against adamw, or against sgd in a study that puts AdamW inside all. Test columns are read here, of the chosen
configurations.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from cser_ray.methods import has_ratio, is_dense
from cser_ray.scale import scale_of
from tuning.compare.comparison import Reference
from tuning.compare.selection import Choice, Choices, mean_std
from tuning.compare.verdict import score_of, simplicity


@dataclass(frozen=True)
class References:
    """The lines beside the methods of one local step. None: not run, or without a result."""

    name: str
    """Of the synchronous method."""
    dense: Reference | None
    floor: Reference | None
    """The most accurate line without communication: methods are tested against it."""
    zero: Reference | None
    """The line without communication that has the lowest test loss: value is retained in loss, and counts from there."""

    @property
    def gap(self) -> float | None:
        """(zero - dense) / standard deviation of a repeat, pooled over the two, in test loss."""
        dense, zero = self.dense, self.zero
        if dense is None or zero is None or dense.test_loss is None or zero.test_loss is None:
            return None
        if dense.test_loss_std is None or zero.test_loss_std is None:
            return None
        std = math.sqrt((dense.test_loss_std**2 + zero.test_loss_std**2) / 2)
        gap = zero.test_loss - dense.test_loss
        return gap / std if std else math.copysign(math.inf, gap)

    @property
    def silence_is_as_good(self) -> bool:
        """Whether the floor is as accurate as dense training."""
        return self.floor is not None and self.dense is not None and score_of(self.floor) >= score_of(self.dense)


def reference_lines(choices: Choices) -> list[Reference]:
    """Of each method without a ratio one line, or, where it sends nothing, three: averaged, a single worker, the ensemble.

    Among those three the most accurate is the floor.
    """
    found: list[Reference] = []
    for choice in sorted((c for c in choices.values() if not has_ratio(c.method)), key=lambda c: simplicity(c.method)):
        if not math.isinf(choice.ratio):
            found.append(_line(choice, ""))
            continue
        silent = [_line(choice, model) for model in ("", "_worker", "_ensemble")]
        floor = max(silent, key=score_of)
        found += [replace(line, is_floor=line is floor and line.test_acc is not None) for line in silent]
    return found


def references(name: str, lines: Sequence[Reference], choices: Choices) -> References:
    """The lines beside the methods whose synchronous one is called so; of several such runs the first stands for it."""
    named = {choice.method for choice in choices.values() if choice.reference == name}
    own = [line for line in lines if line.method in named]
    return References(
        name,
        next((line for line in own if line.is_dense), None),
        next((line for line in own if line.is_floor), None),
        zero_of_value(own),
    )


def zero_of_value(lines: Iterable[Reference]) -> Reference | None:
    """See `References.zero`."""
    known = [line for line in lines if line.is_silent and line.test_loss is not None]
    return min(known, key=lambda line: line.test_loss or 0.0, default=None)


TITLES = {"": "", "_worker": "'s mean single worker", "_ensemble": "'s ensemble"}
"""Suffix of the columns of the averaged model, of the workers' own and of their ensemble -> what the line is called."""


def _line(choice: Choice, model: str) -> Reference:
    # The mean of unsynchronised models may fail where each of them is good: that is no fault of theirs.
    known = [{} if not model and run["diverged"] else run for run in choice.runs]
    accuracies, losses = ([run.get(f"{column}{model}") for run in known] for column in ("test_acc", "test_loss"))
    return Reference(
        name=choice.method + TITLES[model],
        method=choice.method,
        is_floor=False,
        is_dense=is_dense(choice.method),
        is_silent=math.isinf(choice.ratio),
        repeats=choice.repeats,
        test_accs=tuple(accuracies),
        test_acc=mean_std(accuracies)[0],
        test_acc_std=mean_std(accuracies)[1],
        test_loss=mean_std(losses)[0],
        test_loss_std=mean_std(losses)[1],
        scale=scale_of(choice.runs[0]),
    )
