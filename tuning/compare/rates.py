"""How a configuration depends on its learning rate: without re-tuning, and how wide the range of good rates is.

Nobody re-tunes a cluster job. So a method that is good at one rate only, or not at the rate that was tuned for
synchronous training, is a risk that its best result does not show.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from cser_ray.methods import is_dense
from tuning.compare.selection import Choice, Choices, Configuration, Run, mean_std
from tuning.compare.verdict import simplicity

WITHIN = 0.1
"""A learning rate is good where its validation loss is at most this much above the chosen one's."""

ByRate = Mapping[float, Sequence[Run]]


def synchronous_rate(choice: Choice, choices: Choices) -> float | None:
    """The rate chosen for synchronous training with the same local step; None where it was not run."""
    dense = [each for each in choices.values() if is_dense(each.method) and each.reference == choice.reference]
    return min(dense, key=lambda each: simplicity(each.method)).configuration.lr if dense else None


def by_rate(chosen: Configuration, tried: Mapping[Configuration, Sequence[Run]]) -> dict[float, Sequence[Run]]:
    """The runs of the chosen configuration at other learning rates, by these."""
    return {c.lr: runs for c, runs in tried.items() if replace(c, lr=chosen.lr) == chosen}


def untuned(runs: ByRate, lr: float | None) -> dict[str, Any]:
    """The fields of a cell that say what came of the rate `lr`; n is 0 where it was not run."""
    there = [] if lr is None else runs.get(lr, [])
    converged = [run for run in there if not run["diverged"]]
    accuracy, accuracy_std = mean_std(run["test_acc"] for run in converged)
    loss, loss_std = mean_std(run["test_loss"] for run in converged)
    return {
        "untuned_lr": lr,
        "untuned_n": len(there),
        "untuned_diverged": len(there) - len(converged),
        "untuned_test_acc": accuracy,
        "untuned_test_acc_std": accuracy_std,
        "untuned_test_loss": loss,
        "untuned_test_loss_std": loss_std,
    }


def good_range(runs: ByRate, lr: float) -> dict[str, Any]:
    """The fields of a cell on the neighbouring rates around the chosen `lr` that are good: how far apart they are.

    Each is compared with `lr` on the repeats that both have. Unknown where no other rate was tried.
    """
    rates = sorted(runs)
    if len(rates) < 2 or not any(_known(run) for run in runs[lr]):
        return {"lr_range": None, "lr_range_open": False}
    at = rates.index(lr)
    low, high = at, at
    while low > 0 and _good(runs[rates[low - 1]], runs[lr]):
        low -= 1
    while high < len(rates) - 1 and _good(runs[rates[high + 1]], runs[lr]):
        high += 1
    return {"lr_range": rates[high] / rates[low], "lr_range_open": low == 0 or high == len(rates) - 1}


def _good(runs: Sequence[Run], chosen: Sequence[Run]) -> bool:
    best = {run["repeat"]: run["val_loss"] for run in chosen if _known(run)}
    common = [run for run in runs if run["repeat"] in best]
    if not common or not all(_known(run) for run in common):
        return False
    mine = math.fsum(run["val_loss"] for run in common)
    return mine <= (1 + WITHIN) * math.fsum(best[run["repeat"]] for run in common)


def _known(run: Run) -> bool:
    return not run["diverged"] and run["val_loss"] is not None and math.isfinite(run["val_loss"])
