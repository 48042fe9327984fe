"""A study of a task with a metric of its own: chosen, decided and worded by its name, unit and direction."""

import math
from pathlib import Path
from typing import Any

import pytest

from cser_ray.scale import Scale
from dashboards.views.decision import decision
from dashboards.views.structures import frame as structure_frame
from dashboards.views.structures import heat
from dashboards.views.tradeoff import tradeoff
from tests.tuning.pushed_study import finished
from tests.tuning.rows_factory import frame, repeats, run
from tuning.advise.learned import learned
from tuning.compare.compare import compare, configurations
from tuning.compare.render import render
from tuning.compare.selection import Chosen, choose
from tuning.execute.trial import summary
from tuning.take_home.best import find_best
from tuning.take_home.push.optuna import push
from tuning.take_home.push.runs import PushedRun, PushedStudy

PERPLEXITY: dict[str, Any] = Scale("perplexity", "", False, "nats").columns()
R2: dict[str, Any] = Scale("R²", "", True, "").columns()


def study(columns: dict[str, Any], sign: float) -> Any:
    """Of each method three repeats; `cser` is best by `sign`, and silence worst."""
    level = {"sgd": 5.0, "no-sync": 2.0, "cser": 4.9, "local-sgd": 4.0, "qsparse": 3.0}
    rows = []
    for method, mean in level.items():
        values = [10 + sign * (mean + 0.01 * k * (1 + mean)) for k in range(3)]
        own = {"test_acc_worker": values[0] - 2 * sign, "test_loss_worker": 3.0} if method == "no-sync" else {}
        rows += repeats(method, values, **columns, **own, config_json="{}")
    return frame(rows)


@pytest.mark.parametrize(("columns", "sign"), [(PERPLEXITY, -1.0), (R2, 1.0)], ids=["less", "more"])
def test_the_winner_is_the_best_by_the_metrics_direction(columns: dict[str, Any], sign: float) -> None:
    """Winner, floor, cost and marks, each as accuracy has them."""
    c = compare(study(columns, sign))
    (verdict,) = c.verdicts
    assert (verdict.best, verdict.winner) == ("cser", "cser")
    assert verdict.cost_to_sgd == pytest.approx(0.101, abs=1e-3)
    assert not any(cell.under_floor for cell in c.cells)
    assert next(line.name for line in c.references if line.is_floor) == "no-sync"
    assert c.scale.maximise == (sign > 0)


def test_texts_say_the_metric_and_its_direction() -> None:
    """No per cent, no accuracy and no highest mean of a perplexity."""
    rows = study(PERPLEXITY, -1.0)
    text = render(compare(rows)) + render(configurations(rows))
    assert "Test perplexity" in text
    assert "own perplexity" in text
    assert "lowest perplexity of no-sync's three lines" in text
    for word in ("accura", "acc.", "highest", "%, ", "points"):
        assert word not in text.replace("Holm, 5 %", ""), word
    head, first, *_ = render(compare(rows), "csv").splitlines()
    assert head.endswith("ensemble_acc,metric,metric_unit,metric_maximise,loss_unit")
    assert first.endswith(",perplexity,,false,nats")


def test_choosing_by_the_metric_takes_the_lowest_perplexity() -> None:
    """`val-acc` is the metric whatever it is."""
    rows = frame(
        [run("cser", lr=lr, val_acc=value, **PERPLEXITY) for lr, value in ((0.1, 9.0), (0.2, 7.0), (0.4, 8.0))]
    )
    (choice,) = choose(rows, "val-acc").values()
    assert (choice.configuration.lr, choice.score) == (0.2, 7.0)


def test_the_page_has_it() -> None:
    """Name and unit beside the table, the front towards less, and the best of a structure the lowest."""
    rows = study(PERPLEXITY, -1.0)
    c = compare(rows)
    assert decision(c, 3)["metric"]["axis"] == "perplexity"
    cheap = tradeoff(c)
    best = max(cheap["fronts"]["bytes"], key=lambda place: cheap["points"][place]["bytes"])
    assert cheap["points"][best]["mean"] == min(point["mean"] for point in cheap["points"])
    pair = [run("cser", lr=lr, val_acc=value, **PERPLEXITY) for lr, value in ((0.1, 9.0), (0.2, 7.0))]
    (entry,) = heat(structure_frame(configurations(Chosen.of(frame(pair)))))
    assert (entry["val_acc"], entry["lr"]) == (7.0, 0.2)


def test_what_a_method_loses_is_worse_and_not_less() -> None:
    """The plan's cost of a perplexity is what it lies above, and its usual limit 1 % of it."""
    import pandas as pd

    columns = ["run_id", "evaluation", "step", "val_loss"]
    known = learned(Chosen.of(study(PERPLEXITY, -1.0)), pd.DataFrame([], columns=columns))
    cost = {method: outcome.cost for (method, _), outcome in known.outcomes.items()}
    assert cost["local-sgd"] == pytest.approx(1.01, abs=0.01)
    assert known.usual_loss == pytest.approx(0.0494, abs=1e-4)


def test_what_tune_sees_is_the_best_of_the_runs() -> None:
    """A stack's metric is its lowest perplexity; one that is not finite is worst."""
    runs = [run("cser", lr=lr, val_acc=v, **PERPLEXITY) for lr, v in ((0.1, 9.0), (0.2, 7.0), (0.4, math.inf))]
    found = summary([_epoch(row) for row in runs], runs)
    assert (found["val_acc"], found["best_lr"], found["metric"]) == (7.0, 0.2, "perplexity")


def _epoch(row: Any) -> Any:
    from cser_ray.store.read import EpochRow

    ids = {
        name: getattr(row, name) for name in ("study", "trial_id", "run_id", "attempt", "rung", "val_acc", "val_loss")
    }
    return EpochRow(**ids, evaluation=0, step=1, epoch=0.1)


def test_best_says_what_was_reached() -> None:
    """In the metric's words."""
    import json
    from dataclasses import asdict

    from cser_ray.config import config_at
    from cser_ray.store.read import jsonable

    told = json.dumps(jsonable(asdict(config_at("cser", 16.0, steps=2048))))
    rows = frame(repeats("cser", [7.0, 7.1, 7.2], **PERPLEXITY, config_json=told))
    best = find_best(rows, 16.0, "cser")
    assert "test perplexity 7.100±.100, test loss" in best.summary
    assert "It reached test perplexity 7.0000, test loss" in best.report("results/x", None)


def test_optuna_is_told_the_metrics_direction(tmp_path: Path) -> None:
    """A study that chooses by perplexity is to be minimised there, by R² maximised."""
    optuna = pytest.importorskip("optuna")
    for name, columns, way in (("less", PERPLEXITY, "MINIMIZE"), ("more", R2, "MAXIMIZE")):
        row = {key: value for key, value in vars(finished(**columns)).items() if value is not None}
        url = f"sqlite:///{tmp_path}/study.db"
        push(PushedStudy(name, "val-acc", (PushedRun(row, (), name),), 0), url)
        there = optuna.load_study(storage=url, study_name=name)
        assert there.direction.name == way
        assert there.best_value == 60.0
