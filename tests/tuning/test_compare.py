"""A comparison says what the rows support and no more: winners, floors, divergence, and what it could not compare."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cser_ray.store.read import RunRow, read_runs
from cser_ray.store.write import Store
from tests.tuning.rows_factory import NO_SYNC, SGD, cell, frame, grid, local_sgd, run, verdict
from tuning.compare.compare import compare, configurations
from tuning.compare.render import render

LOST: dict[str, Any] = {"diverged": True, "test_acc": None, "test_loss": None, "val_loss": None, "val_acc": None}


def clear(method: str = "csea", **values: Any) -> list[RunRow]:
    """A method far above `local_sgd()` in every repeat."""
    return grid(method, [65.0, 65.6, 64.9], **values)


def test_a_clear_winner_is_marked() -> None:
    """Five points in every repeat are significant: the cell carries the mark and the advice is to use it."""
    comparison = compare(frame(SGD, NO_SYNC, local_sgd(), clear()))
    assert comparison.problems == ()
    assert cell(comparison, "csea").winner
    assert not cell(comparison, "local-sgd").winner
    text = render(comparison)
    assert "65.2±.4*" in text
    assert "R_C = 16: csea is the best here (65.2±.4; every other method is significantly worse" in text


@pytest.mark.parametrize(
    "changed", [{"steps": 4096}, {"batch_size": 32}, {"workers": 16}, {"momentum": 0.0}, {"schedule": "cosine"}]
)
def test_no_winner_is_marked_where_a_method_got_more(changed: dict[str, Any]) -> None:
    """The same clear difference under unequal treatment: no mark, no recommendation, and the reason is printed."""
    comparison = compare(frame(SGD, NO_SYNC, local_sgd(), clear(**changed)))
    assert not any(c.winner for c in comparison.cells)
    assert comparison.verdicts[0].recommended is None
    text = render(comparison)
    assert "no verdict, since the treatment was not equal" in text
    assert "*" not in text
    assert "in csea" in text[text.index("Problems") :]


def test_no_winner_is_marked_where_a_method_had_more_runs() -> None:
    """One more learning rate for one method is enough to refuse."""
    comparison = compare(frame(SGD, NO_SYNC, local_sgd(), clear(), run("csea", lr=0.4, val_loss=1.9)))
    assert not any(c.winner for c in comparison.cells)
    assert "the number of finished runs differs" in comparison.problems[0]


def test_more_rivals_need_more_evidence() -> None:
    """Differences 1, 2, 3 are p = .037: a winner against one rival, none against two, where Holm makes it .074."""
    best = grid("csea", [61.0, 63.0, 62.0])
    rivals = [grid(method, [60.0, 61.0, 59.0]) for method in ("local-sgd", "diloco")]
    assert verdict(best, rivals[0]).winner == "csea"
    found = verdict(best, *rivals)
    assert found.winner is None
    assert found.p_values["local-sgd"] == pytest.approx(2 * 0.03709, abs=1e-4)


def test_local_sgd_is_recommended_where_nothing_is_told_apart_from_it() -> None:
    """A higher mean that the repeats do not support makes no winner; the simplest of the equals is advised."""
    found = verdict(SGD, NO_SYNC, local_sgd(), grid("cser-pl", [61.5, 59.0, 61.0]), grid("ef-sgd", [50.0, 50.4, 49.7]))
    assert (found.best, found.winner, found.recommended) == ("cser-pl", None, "local-sgd")
    assert found.reason.startswith("cser-pl and local-sgd not told apart (p = .")
    assert "local-sgd is as good as any here (60.0±.5; no method is significantly better" in found.advice


def test_the_cost_against_sgd_is_said_where_it_is_significant() -> None:
    """68.0 against 60.0 in every repeat costs 8 points; the sentence on all ratios then says not to compress."""
    comparison = compare(frame(SGD, NO_SYNC, local_sgd(), clear("diloco")))
    assert comparison.verdicts[0].cost_to_sgd == pytest.approx(68.0 - 65.1666, abs=1e-3)
    assert "do not compress" in comparison.advice[0]
    level = verdict(SGD, NO_SYNC, grid("local-sgd", [68.2, 68.1, 67.6]))
    assert level.cost_to_sgd == 0.0
    assert "not told apart from synchronous sgd" in level.advice


def test_two_repeats_decide_nothing() -> None:
    """With n = 2 there is no winner, whatever the difference."""
    comparison = compare(frame(grid("local-sgd", [50.0, 50.1]), grid("csea", [65.0, 65.1])))
    assert not any(c.winner for c in comparison.cells)
    assert "no verdict on 2 repeats, and a test needs 3 or more; the highest mean is csea" in render(comparison)


def test_a_method_that_always_diverged_is_shown_so_and_beaten() -> None:
    """Its cell reads diverged, no number of it is shown, and the other method wins without a test."""
    comparison = compare(frame(SGD, NO_SYNC, local_sgd(), grid("ef-sgd", [1.0, 1.0, 1.0], **LOST)))
    assert cell(comparison, "ef-sgd").test_acc is None
    assert cell(comparison, "ef-sgd").diverged == 3
    assert cell(comparison, "local-sgd").winner
    assert "all others diverged" in comparison.verdicts[0].advice
    row = next(line for line in render(comparison).splitlines() if line.startswith("  16 "))
    assert row.split() == ["16", "60.0±.5*", "diverged"]


def test_partial_divergence_is_counted_and_wins_nothing() -> None:
    """Two good repeats of three: the mean of the two, the count, and no rank above a method that never diverged."""
    shaky = grid("ef-sgd", [67.0, 67.0, 68.0])
    shaky[2] = replace(shaky[2], **LOST)
    comparison = compare(frame(SGD, NO_SYNC, local_sgd(), shaky))
    assert "67.0±.0 (1/3 diverged)" in render(comparison)
    found = comparison.verdicts[0]
    assert (found.best, found.winner) == ("local-sgd", None)
    assert found.reason == "local-sgd and ef-sgd have under 3 converged repeats in common"


@pytest.mark.parametrize(
    ("tried", "edge"), [((0.05, 0.1, 0.2), ""), ((0.1, 0.2), "low"), ((0.05, 0.1), "high"), ((0.1,), "only")]
)
def test_a_learning_rate_on_the_edge_is_flagged(tried: tuple[float, ...], edge: str) -> None:
    """The chosen rate is 0.1; the flag says on which side nothing was tried."""
    comparison = compare(frame([run(lr=lr, val_loss=abs(lr - 0.1)) for lr in tried]))
    assert cell(comparison, "local-sgd").lr_edge == edge
    assert ("60.0†" in render(comparison)) == bool(edge)


def test_real_runs_stand_beside_and_not_inside() -> None:
    """The twin shows both accuracies at the same repeats; the cell's mean is the virtual one."""
    real = [run(repeat=k, rung="distributed", stage="real", run_id=f"real{k}", test_acc=61.0) for k in (0, 1)]
    comparison = compare(frame(SGD, NO_SYNC, local_sgd(), real))
    (twin,) = comparison.twins
    assert (twin.repeats, twin.test_acc, twin.virtual_test_acc) == ((0, 1), 61.0, 60.25)
    assert cell(comparison, "local-sgd").test_acc == pytest.approx(60.0)
    assert "On real workers" in render(comparison)


def test_all_shows_every_configuration_and_the_papers_rates() -> None:
    """Three rates are three rows; 0.1 and 0.05 are of the paper's grid, 0.2 is not; the chosen one shows its test."""
    rows = configurations(frame(local_sgd(theorem1=256.0, share=1.0)))
    assert [(r.lr, r.n, r.paper_rate, r.chosen) for r in rows] == [
        (0.05, 1, True, False),
        (0.1, 3, True, True),
        (0.2, 1, False, False),
    ]
    assert [r.test_acc for r in rows] == [None, 60.0, None]
    assert (rows[1].stages, rows[1].theorem1, rows[1].share) == ("screen+repeat", 256.0, 1.0)


def test_no_runs_is_a_sentence() -> None:
    """An empty folder is said to be one."""
    with pytest.raises(ValueError, match="no runs to compare: start a study"):
        compare(frame())


def test_no_finished_run_is_a_sentence() -> None:
    """A study that has only begun is not compared, and the statuses are counted."""
    with pytest.raises(ValueError, match=r"no virtual run has finished.*\(1 virtual ERROR, 2 virtual RUNNING\)"):
        compare(frame([run(status=s, repeat=k) for k, s in enumerate(("RUNNING", "RUNNING", "ERROR"))]))


@pytest.mark.parametrize("column", ["task", "task_hash"])
def test_runs_of_different_data_are_refused(column: str) -> None:
    """Accuracies on different data have no common scale: the values are named."""
    with pytest.raises(ValueError, match=rf"different {column} are not compared: .* \(1 runs\), other \(1 runs\)"):
        compare(frame(run(), run("csea", **{column: "other"})))


def test_a_results_folder_compares_as_the_rows_in_it(tmp_path: Path) -> None:
    """Through Parquet and back, nullable columns included, the comparison is the same."""
    rows = [*SGD, *NO_SYNC, *local_sgd()]
    store = Store(str(tmp_path / "study"))
    store.write_study({"fingerprint": {"task": "mnist1d"}})
    for trial in {row.trial_id for row in rows}:
        with store.trial(trial, 0) as writer:
            writer.runs([row for row in rows if row.trial_id == trial])
    assert render(compare(read_runs(store.uri)), "json") == render(compare(frame(rows)), "json")
