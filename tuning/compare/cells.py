"""From chosen configurations to the cells, references and twins of a comparison: means over repeats, and marks.

Test columns are read here and in `rates`, of the chosen configurations and of those with synchronous SGD's rate.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from cser_ray.knobs import KNOBS
from cser_ray.methods import ALL_KNOBS, has_ratio, known
from cser_ray.scale import scale_of
from tuning.compare.comparison import Cell, ConfigurationRow, Reference, Twin
from tuning.compare.fairness import name_cell
from tuning.compare.rates import by_rate, good_range, untuned
from tuning.compare.references import References
from tuning.compare.selection import (
    RUNG,
    Choice,
    Chosen,
    Configuration,
    Run,
    mean_std,
)
from tuning.compare.verdict import score_of, simplicity

PAPER_RATES = (0.05, 0.1, 0.5, 1.0)
"""The learning rates that CSER's authors tried (section 5.2)."""

COMMUNICATION = ("realised_ratio", "realised_ratio_bf16", "rounds", "syncs_per_block", "bytes_sent")


def cell_of(
    choice: Choice, tried: Mapping[Configuration, list[Run]], untuned_lr: float | None, beside: References
) -> Cell:
    """The cell of a chosen configuration among those tried. `untuned_lr`: the synchronous method's; `beside`: its lines.

    Winners are marked later, when all cells are known.
    """
    floor = beside.floor
    converged = [run for run in choice.runs if not run["diverged"]]
    accuracies = tuple(None if run["diverged"] else run["test_acc"] for run in choice.runs)
    accuracy, accuracy_std = mean_std(accuracies)
    scale = scale_of(choice.runs[0])
    loss, loss_std = mean_std(run["test_loss"] for run in converged)
    method, configuration = choice.method, choice.configuration
    rates = by_rate(configuration, tried)
    return Cell(
        method=method,
        ratio=choice.ratio,
        n=len(choice.runs),
        diverged=choice.diverged,
        repeats=choice.repeats,
        test_accs=accuracies,
        test_acc=accuracy,
        test_acc_std=accuracy_std,
        test_loss=loss,
        test_loss_std=loss_std,
        value_retained=_value_retained(loss, beside.dense, beside.zero),
        under_floor=floor is not None
        and has_ratio(method)
        and (accuracy is None or scale.sign * accuracy < score_of(floor)),
        winner=False,
        **_knobs(method, configuration),
        lr=configuration.lr,
        lr_edge=_edge(configuration.lr, set(rates)),
        **untuned(rates, untuned_lr),
        **good_range(rates, configuration.lr),
        block_order=configuration.block_order,
        **_means(
            converged or choice.runs, "realised_ratio", "realised_ratio_bf16", "rounds", "syncs_per_block", "bytes_sent"
        ),
        consensus_distance=mean_std(run["consensus_distance"] for run in converged)[0],
        worker_acc=mean_std(run["test_acc_worker"] for run in choice.runs)[0],
        ensemble_acc=mean_std(run["test_acc_ensemble"] for run in choice.runs)[0],
        scale=scale,
    )


def configuration_row(runs: list[Run], chosen: Chosen) -> ConfigurationRow:
    """The row of one configuration on one rung; test columns only where it is the chosen one."""
    first = runs[0]
    key, configuration = (first["method"], first["ratio"]), first.configuration
    short = first["stage"] == RUNG
    whole = chosen.tried if first["rung"] == "virtual" else chosen.real
    done = [run for run in runs if run["status"] == "FINISHED"] if short else whole.get(key, {}).get(configuration, [])
    converged = [run for run in done if not run["diverged"]]
    choice = chosen.choices.get(key)
    is_chosen = choice is not None and choice.configuration == configuration and not short
    reported = choice.runs if choice is not None and first["rung"] == "virtual" else done
    test, test_std = mean_std(run["test_acc"] for run in reported if not run["diverged"]) if is_chosen else (None, None)
    loss, loss_std = mean_std(run["val_loss"] for run in converged)
    accuracy, accuracy_std = mean_std(run["val_acc"] for run in converged)
    return ConfigurationRow(
        method=first["method"],
        ratio=first["ratio"],
        **_knobs(first["method"], configuration),
        block_order=configuration.block_order,
        lr=configuration.lr,
        paper_rate=any(math.isclose(configuration.lr, rate) for rate in PAPER_RATES),
        rung=f"{first['steps']} steps" if short else first["rung"],
        stages="+".join(dict.fromkeys(run["stage"] for run in runs)),
        n=len(done),
        diverged=len(done) - len(converged),
        unfinished=sum(run["status"] != "FINISHED" for run in runs),
        val_loss=loss,
        val_loss_std=loss_std,
        val_acc=accuracy,
        val_acc_std=accuracy_std,
        chosen=is_chosen,
        test_acc=test,
        test_acc_std=test_std,
        **_means(done or runs, "share", "theorem1", "realised_ratio", "rounds"),
        consensus_distance=mean_std(run["consensus_distance"] for run in converged)[0],
        scale=scale_of(first),
    )


def twins_of(chosen: Chosen) -> tuple[list[Twin], list[str]]:
    """The chosen configurations on real workers, and a sentence on each run there that has no place beside a cell."""
    twins, left_out = [], []
    for key, configurations_there in chosen.real.items():
        choice = chosen.choices.get(key)
        for configuration, runs in configurations_there.items():
            if choice is None or choice.configuration != configuration:
                left_out.append(f"{name_cell(key)} ran on real workers with a configuration that is not chosen here.")
            else:
                twins.append(_twin(choice, runs))
    failed = sum(run["rung"] == "distributed" and run["status"] != "FINISHED" for run in chosen.rows)
    if failed:
        left_out.append(f"{failed} run{'s' * (failed > 1)} on real workers did not finish.")
    return sorted(twins, key=lambda t: (t.ratio, simplicity(t.method))), left_out


def _twin(choice: Choice, runs: list[Run]) -> Twin:
    repeats = tuple(run["repeat"] for run in runs)
    virtual = [run for run in choice.runs if run["repeat"] in repeats]
    return Twin(
        choice.method,
        choice.ratio,
        repeats,
        runs[0]["backend"],
        sum(bool(run["diverged"]) for run in runs),
        mean_std(run["test_acc"] for run in runs if not run["diverged"])[0],
        mean_std(run["test_acc"] for run in virtual if not run["diverged"])[0],
        _mean_of(runs, "realised_ratio"),
        _mean_of(virtual, "realised_ratio"),
        _mean_of(runs, "wall_s"),
        _mean_of(runs, "comm_s"),
    )


def _value_retained(loss: float | None, dense: Reference | None, zero: Reference | None) -> float | None:
    if loss is None or dense is None or zero is None or dense.test_loss is None or zero.test_loss is None:
        return None
    gap = zero.test_loss - dense.test_loss
    return (zero.test_loss - loss) / gap if gap > 0 else None


def _edge(lr: float, grid: set[float]) -> str:
    if len(grid) == 1:
        return "only"
    return "low" if lr == min(grid) else "high" if lr == max(grid) else ""


def _mean_of(runs: Iterable[Run], column: str) -> float | None:
    """Mean of a column that may be infinite; None where it is null throughout."""
    known = [run[column] for run in runs if run[column] is not None]
    return math.fsum(known) / len(known) if known else None


def _means(runs: Sequence[Run], *names: str) -> dict[str, Any]:
    return {name: _mean_of(runs, name) for name in names}


def _knobs(method: str, configuration: Configuration) -> dict[str, Any]:
    """Its structure's, and the others that the method reads; None for the rest."""
    found = {name: getattr(configuration.structure, name, None) for name in ALL_KNOBS}
    record = known(method)
    return found | {
        name: getattr(configuration.knobs, name) if record is not None and name in record.reads else None
        for name in KNOBS
    }
