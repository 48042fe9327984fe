"""What the page shows, computed without a browser: it is the comparison's, and JSON of finite numbers."""

import json
import math
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from cser_ray.store.read import read_runs
from dashboards.snapshot import read_snapshot
from dashboards.views import payload
from dashboards.views.cost import cost
from dashboards.views.trials import ERROR, counts, trials
from tests.dashboards import studies
from tests.tuning.rows_factory import frame, run
from tuning.compare.compare import compare
from tuning.compare.tables import accuracy, value_retained
from tuning.compare.verdict import sentence
from tuning.study.spending import spent


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A results folder with every kind of row."""
    return studies.write(str(tmp_path_factory.mktemp("study") / "results")).uri


@pytest.fixture(scope="module")
def page(folder: str) -> dict[str, Any]:
    """Its payload, as a browser reads it."""
    return json.loads(json.dumps(payload(read_snapshot(folder)), allow_nan=False))  # type: ignore[no-any-return]


def test_the_page_says_what_compare_says(folder: str, page: dict[str, Any]) -> None:
    """Accuracies with their marks, values retained and verdicts are those that `cser-ray compare` prints."""
    comparison = compare(read_runs(folder))
    assert [v["text"] for v in page["decision"]["verdicts"]] == [sentence(v) for v in comparison.verdicts]
    for table, name in ((accuracy(comparison), "text"), (value_retained(comparison), "value")):
        for ratio, *texts in table.rows:
            shown = {c["method"]: c[name] for c in page["decision"]["cells"] if c["ratio"] == float(ratio)}
            assert [shown[method] for method in table.columns[1:]] == texts


def test_a_best_is_marked_where_compare_marks_one(tmp_path: Path) -> None:
    """A winner and a recommendation stand on the page exactly where the verdict has them; with a problem there is none."""
    equal = [row for row in studies.runs() if row.status == "FINISHED"]
    found = payload(read_snapshot(studies.write(str(tmp_path / "equal"), equal).uri))["decision"]
    for mark in ("winner", "recommended"):
        marked = [(c["method"], c["ratio"]) for c in found["cells"] if c[mark]]
        assert marked == [(v[mark], v["ratio"]) for v in found["verdicts"] if v[mark]]
        assert marked
    unequal = payload(read_snapshot(studies.write(str(tmp_path / "unequal")).uri))["decision"]
    assert unequal["problems"]
    assert not [c for c in unequal["cells"] if c["winner"] or c["recommended"]]


def test_rows_are_chosen_among_once_on_their_way_to_the_page(folder: str) -> None:
    """They leave their table, are chosen among and are compared one time each, whatever the views draw of them."""
    calls: Counter[str] = Counter()

    def count(frame: FrameType, event: str, argument: object) -> None:
        if event == "call":
            calls[f"{frame.f_globals.get('__name__')}.{frame.f_code.co_name}"] += 1

    snapshot = read_snapshot(folder)
    sys.setprofile(count)
    try:
        payload(snapshot)
    finally:
        sys.setprofile(None)
    names = [f"tuning.compare.selection.{name}" for name in ("records", "choose_among", "choosers")]
    names += [f"tuning.compare.compare.{name}" for name in ("compare", "configurations")]
    names += ["tuning.compare.fairness.problems", "dashboards.views.curves.by_run", "dashboards.views.structures.frame"]
    assert {name: calls[name] for name in names} == dict.fromkeys(names, 1)
    assert calls["tuning.compare.selection.finished"] == 2  # virtual and real
    assert calls["tuning.compare.selection.configuration"] == len(snapshot.runs)


def test_the_virtual_curve_beside_a_real_one_is_of_full_length(tmp_path: Path) -> None:
    """A shorter run of the same configuration and repeat is not what real workers are compared with."""
    rows = [run("cser"), run("cser", rung="distributed", stage="real", run_id="real", trial_id="real")]
    short = run("cser", stage="rung", steps=512, run_id="a-short", trial_id="a-rung512")
    store = studies.write(str(tmp_path / "r"), [short, *rows])
    snapshot = read_snapshot(store.uri)
    history = snapshot.history
    cut = history[(history["run_id"] != short.run_id) | (history["evaluation"] < 2)]
    (twin,) = payload(replace(snapshot, history=cut))["rungs"]
    assert len(twin["virtual"]["step"]) == len(twin["real"]["step"]) == 8


def test_divergence_is_a_result(page: dict[str, Any]) -> None:
    """A cell whose repeats all diverged has its text and count, and no mean."""
    (cell,) = [c for c in page["decision"]["cells"] if (c["method"], c["ratio"]) == ("qsparse", 64)]
    assert (cell["text"], cell["diverged"], cell["n"], cell["mean"]) == ("diverged", 3, 3, None)


def test_repeats_that_are_still_to_come_are_counted(tmp_path: Path) -> None:
    """A cell with fewer repeats than the study plans says how many it plans."""
    rows = [row for row in studies.runs() if row.repeat < 2]
    cells = payload(read_snapshot(studies.write(str(tmp_path / "r"), rows).uri))["decision"]["cells"]
    assert {(c["n"], c["planned"]) for c in cells} == {(2, 3)}


def test_every_view_has_something_to_draw(page: dict[str, Any]) -> None:
    """A study with all kinds of rows leaves no view empty."""
    assert page["why_not"] is None
    views = ("curves", "ranges", "parallel", "heat", "importance", "rungs", "best")
    assert [name for name in views if not page[name]] == []
    assert page["tradeoff"]["points"]
    assert page["step_times"]["measured"]


def test_a_study_without_a_finished_run_says_why_there_is_no_table(tmp_path: Path) -> None:
    """What runs is listed, and the sentence of compare stands in place of the decision."""
    row = run("cser", status="RUNNING", val_loss=None, val_acc=None)
    found = payload(read_snapshot(studies.write(str(tmp_path / "r"), [row]).uri))
    assert found["decision"] is None
    assert "no virtual run has finished" in found["why_not"]
    assert found["trials"]["run_id"] == [row.run_id]


def test_an_empty_study_is_a_page_too(tmp_path: Path) -> None:
    """Before the first row there are no runs and a reason."""
    found = payload(read_snapshot(studies.write(str(tmp_path / "r"), []).uri))
    assert found["trials"]["run_id"] == []
    assert "there are no runs" in found["why_not"]


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    """The page shows the rest, and the warning that `compare` gives."""
    store = studies.write(str(tmp_path / "r"))
    (tmp_path / "r" / "trials" / "broken-a0.parquet").write_bytes(b"no Parquet")
    found = payload(read_snapshot(store.uri))
    assert found["decision"]
    assert any("broken-a0.parquet" in text for text in found["study"]["warnings"])


def test_a_silent_run_is_stale(tmp_path: Path) -> None:
    """A run that was not heard of for a minute is not shown as running."""
    row = run("cser", status="RUNNING", started_at=datetime(2026, 1, 1, tzinfo=UTC))
    found = payload(read_snapshot(studies.write(str(tmp_path / "r"), [row]).uri))
    assert found["trials"]["status"] == ["stale"]
    assert found["study"]["counts"]["stale"] == 1


def test_counts_are_of_runs_by_status() -> None:
    """Each status once, and of finished runs those that diverged."""
    rows = frame(
        run(repeat=0), run(repeat=1, diverged=True, val_loss=math.nan), run(repeat=2, status="ERROR", error="x")
    )
    assert {name: n for name, n in counts(rows).items() if n} == {
        "ERROR": 1,
        "FINISHED": 2,
        "diverged": 1,
        "runs": 3,
        "trials": 1,
    }


def test_an_error_is_cut_at_its_end() -> None:
    """Of a long traceback the last characters are kept: they say what failed."""
    rows = frame(run(status="ERROR", error="x" * 2 * ERROR + "the end"))
    (error,) = trials(rows)["error"]
    assert len(error) == ERROR
    assert error.endswith("the end")


def test_runs_show_no_test_results(page: dict[str, Any]) -> None:
    """The test split is read for chosen configurations only, so the list of runs has none of it."""
    assert not [name for name in page["trials"] if name.startswith("test")]


def test_cost_is_what_a_budget_counts() -> None:
    """The total is `spent` of all rows, and the methods' parts add up to it."""
    rows = frame(
        run("cser", repeat=0), run("cser", repeat=1), run("local-sgd"), run("cser", rung="distributed", trial_id="t")
    )
    found = cost(rows)
    assert found["total"]["worker_s"] == spent(rows).worker_seconds
    assert sum(part["worker_s"] for part in found["methods"]) == pytest.approx(found["total"]["worker_s"])
    assert sum(part["bytes"] for part in found["methods"]) == pytest.approx(found["total"]["bytes"])


def test_each_cell_comes_with_settings_that_train_takes(page: dict[str, Any]) -> None:
    """The YAML names the cell's method and ratio, and a cell that always diverged says that there is nothing to take."""
    found = {(b["method"], b["ratio"]): b for b in page["best"]}
    assert "method: cser\n" in found["cser", 16]["settings"]
    assert "cser-ray train" in found["cser", 16]["report"]
    assert "no repeat that converged" in found["qsparse", 64]["why_not"]


def test_the_views_need_neither_torch_nor_ray(folder: str) -> None:
    """A page of a large study leaves room for the study itself: making it loads no training library."""
    program = (
        "import sys\nfrom dashboards.feed import Feed\nFeed(sys.argv[1]).get()\n"
        "print(sorted({'torch', 'ray'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", program, folder], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
