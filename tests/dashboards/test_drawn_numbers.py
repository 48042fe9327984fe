"""The numbers behind the charts, against hand-made cases."""

import math

import pandas as pd
import pytest

from cser_ray.budget import Structure
from dashboards.views.curves import EQUAL, POINTS, by_run, curves, mean_curve, ranges
from dashboards.views.importance import epsilon_squared, importance
from dashboards.views.step_times import COMPUTE_MS, RATES, measured_steps, rate_text, step_times
from dashboards.views.structures import frame as structures
from dashboards.views.structures import heat, parallel
from dashboards.views.tradeoff import front, tradeoff
from dashboards.views.values import drawn, thinned
from tests.dashboards import studies
from tests.tuning.rows_factory import frame, grid, repeats, run
from tuning.advise.constants import FITTED
from tuning.advise.step_time import Form, Job, predict
from tuning.compare.compare import compare, configurations
from tuning.compare.selection import choose


def history(*rows: object) -> pd.DataFrame:
    """The histories of some runs, as `read_history` gives them."""
    return pd.DataFrame([vars(epoch) for row in rows for epoch in studies.history(row)])  # type: ignore[arg-type]


# ---- curves


def test_a_curve_is_the_mean_over_the_repeats_that_converged() -> None:
    """A diverged repeat is left out, as it is in the table, and the band is a standard deviation wide on each side."""
    lost = run("local-sgd", repeat=2, diverged=True, val_loss=math.nan, val_acc=1.0)
    rows = [*repeats("local-sgd", [60.0, 64.0]), lost]
    table = frame(rows)
    (curve,) = curves(table, by_run(history(*rows)), choose(table))
    assert curve["n"] == 2
    assert curve["val_acc"][-1] == 62.0
    assert curve["val_acc_high"][-1] == pytest.approx(62 + math.sqrt(8), abs=1e-3)
    assert curve["val_acc_low"][-1] == pytest.approx(62 - math.sqrt(8), abs=1e-3)


def test_a_curve_ends_where_one_of_its_repeats_ends() -> None:
    """A mean over fewer repeats would bend for no reason of the method's."""
    rows = repeats("local-sgd", [60.0, 64.0])
    table, all_rows = frame(rows), history(*rows)
    cut = all_rows[(all_rows["run_id"] != rows[1].run_id) | (all_rows["evaluation"] < 5)]
    (curve,) = curves(table, by_run(cut), choose(table))
    assert curve["epoch"] == [1, 2, 3, 4, 5]


def test_a_cell_with_nothing_finished_shows_the_run_that_is_ahead() -> None:
    """While a study runs, its page is not empty: the curve is marked as provisional."""
    rows = [run("cser", lr=lr, status="RUNNING", val_loss=loss) for lr, loss in ((0.1, 0.9), (0.2, 0.7))]
    (curve,) = curves(frame(rows), by_run(history(*rows)), {})
    assert curve["provisional"]
    assert curve["n"] == 1


def test_a_long_curve_is_thinned_to_its_ends() -> None:
    """Two hundred epochs become a hundred points, the first and the last among them."""
    rows = pd.concat([history(run()).iloc[:1].assign(evaluation=k, epoch=float(k)) for k in range(200)])
    curve = mean_curve([rows])
    assert len(curve["epoch"]) == POINTS
    assert (curve["epoch"][0], curve["epoch"][-1]) == (0, 199)
    assert thinned(3, 100) == [0, 1, 2]


def test_equal_models_have_no_consensus_distance() -> None:
    """Rounding is not drawn as a distance on a logarithmic axis."""
    rows = history(run()).assign(consensus_distance=EQUAL / 2)
    assert set(mean_curve([rows])["consensus_distance"]) == {None}


def test_the_range_leaves_out_what_diverged_and_the_first_quarter() -> None:
    """Neither the first steps nor a divergence press the other curves into a line."""
    rows = [*repeats("local-sgd", [64.0]), run("qsparse", diverged=True, val_loss=math.nan, val_acc=1.0)]
    table = frame(rows)
    found = ranges(curves(table, by_run(history(*rows)), choose(table)))
    (accuracy,) = [r for r in found if r["name"] == "val_acc"]
    assert (accuracy["low"], accuracy["high"]) == (24.0, 64.0)  # evaluations 3 to 8 of 8, rising to 64


# ---- result against cost


@pytest.mark.parametrize(
    ("points", "expected"),
    [
        ([(1, 50), (2, 60), (3, 55)], [0, 1]),
        ([(3, 70), (1, 50), (2, 60)], [1, 2, 0]),
        ([(1, 50), (1, 60)], [1]),
        ([(1, 50), (1, 50), (2, 50)], [0]),
        ([], []),
    ],
)
def test_the_front_holds_what_nothing_is_cheaper_and_better_than(
    points: list[tuple[float, float]], expected: list[int]
) -> None:
    """In order of cost; of equal points the first, and nothing that costs more for the same result."""
    assert front(points) == expected


def test_a_method_that_sends_nothing_is_no_point_of_the_tradeoff() -> None:
    """Neither no-sync, whose bytes are 0, nor what always diverged has a place; both stand elsewhere."""
    rows = frame(
        grid("sgd", [70.0, 71.0]), grid("no-sync", [40.0, 41.0], bytes_sent=0, rounds=0.0), grid("cser", [60.0, 61.0])
    )
    points = tradeoff(compare(rows))["points"]
    assert [p["method"] for p in points] == ["sgd", "cser"]
    assert points[1]["high"] - points[1]["mean"] == pytest.approx(points[1]["std"], abs=1e-3)


# ---- structures


def test_parallel_axes_are_logarithmic_with_infinity_at_the_end() -> None:
    """H of 1, 4 and 16 are evenly spaced; RC2 = inf stands apart from the largest finite one."""
    rows = [
        run("cser", reset_interval=h, reset_ratio=8.0, gradient_ratio=rc2, val_acc=50.0 + h)
        for h, rc2 in ((1, 32.0), (4, 64.0), (16, math.inf))
    ]
    (found,) = parallel(structures(configurations(frame(rows))))
    names = [axis["name"] for axis in found["axes"]]
    interval, gradient = names.index("reset_interval"), names.index("gradient_ratio")
    assert [line["places"][interval] for line in found["lines"]] == [0.0, 0.5, 1.0]
    assert [line["places"][gradient] for line in found["lines"]] == [0.0, 0.85, 1.0]
    assert found["axes"][gradient]["ticks"][-1] == {"place": 1.0, "text": "∞"}


def test_parallel_lines_are_the_compressed_configurations() -> None:
    """sgd has no knobs, and a configuration without a finished run no result: neither is a line."""
    rows = frame(run("sgd"), run("cser"), run("cser", lr=0.2, status="ERROR", error="x"))
    (found,) = parallel(structures(configurations(rows)))
    assert [(line["method"], line["chosen"]) for line in found["lines"]] == [("cser", True)]


def test_the_map_takes_the_best_learning_rate_of_each_structure() -> None:
    """One entry for each (H, RC1), with the rate it is reached at and how many were tried."""
    rows = frame(run("cser", lr=0.1, val_acc=50.0), run("cser", lr=0.2, val_acc=60.0), run("local-sgd", val_acc=70.0))
    (entry,) = heat(structures(configurations(rows)))
    assert (entry["method"], entry["val_acc"], entry["lr"], entry["tried"]) == ("cser", 60.0, 0.2, 2)


# ---- importance


def test_a_knob_that_decides_everything_has_a_share_of_one() -> None:
    """And one that is unrelated to the result has none."""
    decides = pd.Series([1.0, 1.0, 2.0, 2.0, 3.0, 3.0])
    assert epsilon_squared(decides, pd.Series([1, 1, 2, 2, 3, 3])) == pytest.approx(1.0)
    assert epsilon_squared(decides, pd.Series([1, 2, 1, 2, 1, 2])) == 0.0


def test_epsilon_squared_by_hand() -> None:
    """Values 1, 2 and 3, 6: within 0.5 + 4.5 over 2, of all 14 over 3."""
    found = epsilon_squared(pd.Series([1.0, 2.0, 3.0, 6.0]), pd.Series(["a", "a", "b", "b"]))
    assert found == pytest.approx(1 - (5 / 2) / (14 / 3))


@pytest.mark.parametrize("groups", [[1, 1, 1], [1, 2, 3], [None, None, None]])
def test_a_knob_that_does_not_vary_or_repeat_is_left_out(groups: list[int | None]) -> None:
    """One value says nothing, and neither does a value a run."""
    assert epsilon_squared(pd.Series([1.0, 2.0, 3.0]), pd.Series(groups)) is None


def test_a_diverged_run_ranks_behind_all_others() -> None:
    """A rate at which runs diverge matters, though they have no loss."""
    rows = [
        run(lr=lr, repeat=k, diverged=lr > 0.1, val_loss=math.nan if lr > 0.1 else 0.5 + k)
        for lr in (0.1, 0.5)
        for k in range(4)
    ]
    shares = {entry["knob"]: entry["share"] for entry in importance(frame(rows), "val-loss")}
    assert shares["learning rate"] > 0.5
    assert shares["repeat (chance)"] == 0.0


# ---- times of a step


def test_predicted_steps_are_those_of_plan() -> None:
    """Each time is `tuning.advise.step_time.predict` of the chosen structure, at its rate and time of computing."""
    rows = frame(grid("sgd", [70.0, 71.0, 70.5]), grid("cser", [60.0, 61.0, 60.5], reset_interval=4, reset_ratio=8.0))
    comparison, choices = compare(rows), choose(rows)
    found = step_times(rows, choices, comparison)
    assert found is not None
    (form,) = [f for f in found["forms"] if f["method"] == "cser"]
    c, r = found["compute_ms"].index(COMPUTE_MS[2]), 5
    job = Job(7562, COMPUTE_MS[2] / 1e3, 8, RATES[r])
    expected = predict(Form("cser", Structure(4, 8.0)), job, FITTED["gloo"]).step_s
    assert form["step_ms"][c][r] == drawn(1e3 * expected)
    assert form["run_s"][c][r] == drawn(2048 * expected)
    assert form["speedup"][c][r] == drawn(predict(Form("ddp"), job, FITTED["gloo"]).step_s / expected)
    assert found["fronts"][c][r]


def test_one_worker_has_no_step_times() -> None:
    """With nobody to communicate with there is nothing to predict."""
    rows = frame(run("sgd", workers=1))
    assert step_times(rows, choose(rows), compare(rows)) is None


def test_measured_steps_are_of_finished_real_runs() -> None:
    """Milliseconds of the loop over its steps, and the part not spent waiting; virtual runs have none."""
    rows = frame(
        run(), run(rung="distributed", wall_s=4.096, comm_s=2.048), run(rung="distributed", status="ERROR", error="x")
    )
    (found,) = measured_steps(rows)
    assert (found["step_ms"], found["compute_ms"], found["comm_ms"], found["n"]) == (2.0, 1.0, 1.0, 1)


def test_rates_are_named_as_people_say_them() -> None:
    """From 10 Mb/s to 100 Gb/s, four a decade."""
    assert [rate_text(rate) for rate in (RATES[0], RATES[8], RATES[-1])] == ["10 Mb/s", "1 Gb/s", "100 Gb/s"]


@pytest.mark.parametrize("value", [None, math.nan, math.inf])
def test_what_cannot_be_drawn_is_null(value: float | None) -> None:
    """JSON has neither NaN nor infinity."""
    assert drawn(value) is None
