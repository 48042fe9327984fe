"""A study as one of Optuna's storage: a run is a trial, its validation loss the value, its curve the reported values."""

from typing import TYPE_CHECKING, Any, Literal

from cser_ray.config import BLOCK_ORDERS
from cser_ray.methods import METHODS
from tuning.compare.selection import direction as direction_of
from tuning.take_home.push.runs import KEY, Pushed, PushedRun, PushedStudy, lacking

if TYPE_CHECKING:
    import optuna

_NUMBERS = {"ratio": (1.0, 1e9), "reset_ratio": (1.0, 1e9), "gradient_ratio": (1.0, 1e9), "lr": (1e-9, 1e6)}
"""Bounds that hold for every study: what one adds later must fit beside what is there."""


def push(study: PushedStudy, url: str) -> Pushed:
    """Add what is not there yet to the study of this name in the storage `url`, as in sqlite:///study.db.

    A run that diverged or was stopped early is a pruned trial, which ranks last, and has the attribute `diverged`.
    Raises ValueError where Optuna is missing or the storage cannot be opened.
    """
    try:
        import optuna
    except ImportError as error:
        raise lacking("Optuna", "optuna", error) from error
    from sqlalchemy.exc import SQLAlchemyError

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    column, sign = direction_of(study.select, study.runs[0].row if study.runs else {})
    direction: Literal["minimize", "maximize"] = "minimize" if sign > 0 else "maximize"
    try:
        there = optuna.create_study(storage=url, study_name=study.name, direction=direction, load_if_exists=True)
    except (SQLAlchemyError, ValueError) as error:
        raise ValueError(f"Optuna cannot open {url}: {error}") from error
    if there.direction.name.lower() != direction:
        raise ValueError(
            f"the study {study.name!r} in {url} is to {there.direction.name.lower()}, this one to {direction}: give --name"
        )
    known = {trial.user_attrs.get(KEY) for trial in there.get_trials(deepcopy=False)}
    new = [run for run in study.runs if run.key not in known]
    there.add_trials([_trial(run, column) for run in new])
    return Pushed(f"Optuna study {study.name!r} in {url}", len(new), len(study.runs) - len(new))


def _trial(run: PushedRun, column: str) -> "optuna.trial.FrozenTrial":
    from optuna.distributions import (
        BaseDistribution,
        CategoricalDistribution,
        FloatDistribution,
        IntDistribution,
    )
    from optuna.trial import TrialState, create_trial

    known: dict[str, BaseDistribution] = {
        "method": CategoricalDistribution(tuple(METHODS)),
        "block_order": CategoricalDistribution(tuple(BLOCK_ORDERS)),
        "reset_interval": IntDistribution(1, 10**9, log=True),
        "share": FloatDistribution(0.0, 1.0),
    } | {name: FloatDistribution(*bounds, log=True) for name, bounds in _NUMBERS.items()}
    # no number for "no such sync" fits on a scale of ratios
    params = {name: run.settings[name] for name in known if run.settings.get(name, "inf") != "inf"}
    others: dict[str, Any] = {name: value for name, value in run.settings.items() if name not in params}
    value = run.results.get(column)
    good = run.row["status"] == "FINISHED" and not run.row["diverged"] and value is not None
    return create_trial(
        state=TrialState.COMPLETE if good else TrialState.PRUNED,
        value=value,
        params=params,
        distributions={name: known[name] for name in params},
        intermediate_values={step: values[column] for step, _, values in run.curve if column in values},
        user_attrs=others | run.results | {KEY: run.key, "run_id": run.run_id, "diverged": bool(run.row["diverged"])},
    )
