"""A study's result as a value: what it says in a notebook is what `cser-ray compare` says of its folder."""

import re
import subprocess
import sys
from collections.abc import Iterable
from html.parser import HTMLParser
from pathlib import Path

import pytest

from cser_ray.store.read import RunRow, read_history, read_runs
from cser_ray.store.write import Store
from tests.golden import unpack
from tests.tuning.command_line import cli
from tests.tuning.rows_factory import grid, repeats, run
from tuning.compare.compare import compare
from tuning.compare.render import render
from tuning.compare.tables import accuracy
from tuning.execute.progress import Plain
from tuning.execute.result import StudyResult
from tuning.take_home.best import find_best

HOSTILE = "<script>alert(1)</script>"


@pytest.fixture(scope="module")
def golden(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole study of version 0.1.0."""
    return unpack("study", tmp_path_factory.mktemp("golden") / "results")


def opened(folder: Path, rows: Iterable[RunRow], planned: int | None = None, **fingerprint: object) -> StudyResult:
    """The result in a folder of these rows; `planned`: runs that its study.json says it has."""
    store = Store(str(folder))
    store.write_study({"fingerprint": fingerprint} | ({} if planned is None else {"runs": planned}))
    trials: dict[str, list[RunRow]] = {}
    for row in rows:
        trials.setdefault(row.trial_id, []).append(row)
    for trial_id, of_trial in trials.items():
        with store.trial(trial_id, 0) as writer:
            writer.runs(of_trial)
    return StudyResult.open(folder)


def elements(text: str) -> list[tuple[str, list[tuple[str, str | None]]]]:
    """Tags and attributes of some HTML."""
    found = []

    class Reader(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            found.append((tag, attrs))

    Reader().feed(text)
    return found


def test_it_begins_as_compare_does(golden: Path) -> None:
    """Heading and verdicts, in the same lines; the tables are a call away."""
    result = StudyResult.open(str(golden))
    said = cli("compare", str(golden)).stdout
    assert said.startswith(f"{result!r}\n\n{accuracy(result.compare()).title}\n")
    assert said == render(result.compare()) + "\n"


def test_its_parts_are_those_of_the_folder(golden: Path) -> None:
    """Rows, history, comparison and what to train with, as the functions give them that read a folder."""
    result = StudyResult.open(golden)
    runs = read_runs(str(golden))
    assert result.rows.equals(runs)
    assert result.history.equals(read_history(str(golden)))
    assert result.compare() == compare(runs)
    assert result.best(16) == find_best(runs, 16.0)
    assert result.best(64, "cser") == find_best(runs, 64.0, "cser")
    assert (result.done, result.total, result.failed, result.complete) == (len(runs), len(runs), (), True)


def test_it_is_a_small_table_in_a_notebook(golden: Path) -> None:
    """What it says, then the accuracies: paragraphs and one table, with neither attributes nor anything else."""
    result = StudyResult.open(golden)
    text = result._repr_html_()
    assert {tag for tag, _ in elements(text)} == {"p", "table", "caption", "tr", "th", "td"}
    assert [attributes for _, attributes in elements(text) if attributes] == []
    table = accuracy(result.compare())
    cells = [cell for row in (table.columns, *table.rows) for cell in row]
    assert re.findall(r"<t[hd]>(.*?)</t[hd]>", text) == cells
    for verdict in result.compare().verdicts:
        assert verdict.advice.replace("'", "&#x27;") in text


def test_what_a_folder_says_is_text(tmp_path: Path) -> None:
    """A folder may be anybody's: no name in it is an element of the page."""
    result = opened(tmp_path / "r", [run(task=HOSTILE)])
    assert HOSTILE in repr(result)
    assert "script" not in {tag for tag, _ in elements(result._repr_html_())}
    assert "&lt;script&gt;" in result._repr_html_()


def test_where_nothing_has_finished_it_says_so(tmp_path: Path) -> None:
    """A sentence in place of the answer, in both forms; asked for a comparison it raises the same."""
    result = opened(tmp_path / "r", [run(status="RUNNING")], planned=3)
    for text in (repr(result).replace("\n", " "), result._repr_html_()):
        assert "no virtual run has finished, so there is nothing to compare yet (1 virtual RUNNING)" in text
        assert "0 of 3 runs have a result; run the study again with this folder to go on." in text
    assert elements(result._repr_html_()) == [("p", []), ("p", [])]
    with pytest.raises(ValueError, match="no virtual run has finished"):
        result.compare()
    empty = opened(tmp_path / "empty", [])
    assert "there are no runs to compare" in repr(empty)


def test_what_is_left_is_said(tmp_path: Path) -> None:
    """An interrupted study has fewer runs than were planned; one with a failed trial names it."""
    left = opened(tmp_path / "left", [run()], planned=4)
    assert (left.done, left.total, left.interrupted, left.complete) == (1, 4, True, False)
    assert repr(left).endswith("1 of 4 runs have a result; run the study again with this folder to go on.")
    failed = opened(tmp_path / "failed", [run(), run("csea", status="ERROR", error="x")], planned=2)
    assert (failed.failed, failed.interrupted, failed.complete) == (("csea-16",), False, False)
    assert "1 of 2 runs have a result; failed: csea-16; run the study again" in repr(failed)
    whole = opened(tmp_path / "whole", [run(), run("csea", status="STOPPED")], planned=2)
    assert (whole.done, whole.complete) == (2, True)
    assert "have a result" not in repr(whole)


def test_it_chooses_as_its_study_did(tmp_path: Path) -> None:
    """By the rule in study.json, or by the one that is asked for."""
    rows = [
        *repeats("csea", [60.0, 61.0]),
        *(run("csea", lr=0.2, repeat=k, val_acc=99.0, val_loss=9.0) for k in (0, 1)),
    ]
    result = opened(tmp_path / "r", rows, select="val-acc")
    assert [cell.lr for cell in result.compare().cells] == [0.2]
    assert [cell.lr for cell in StudyResult.open(result.out, "val-loss").compare().cells] == [0.1]


def test_it_is_what_it_was_when_it_was_opened(tmp_path: Path) -> None:
    """Rows that come later are in the next one: no two answers of one result differ."""
    result = opened(tmp_path / "r", grid("csea", [60.0, 61.0]))
    later = opened(tmp_path / "r", grid("cser", [60.0, 61.0]))
    assert {cell.method for cell in result.compare().cells} == {"csea"}
    assert {cell.method for cell in later.compare().cells} == {"csea", "cser"}


def test_a_folder_that_is_none_is_said_with_the_way_out(tmp_path: Path) -> None:
    """Where it looked, what was meant, and the command that makes one; of a folder without study.json too."""
    nowhere = tmp_path / "no where"
    with pytest.raises(FileNotFoundError) as error:
        StudyResult.open(nowhere)
    assert str(error.value) == (
        f"no results at {nowhere}: a results folder holds study.json, trials/*.parquet and history/*.parquet. Give the "
        f"folder that holds study.json; or make one: cser-ray tune --out '{nowhere}'"
    )
    opened(tmp_path / "r", [run()])
    (tmp_path / "r" / "study.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"no study at .*cser-ray tune --out"):
        StudyResult.open(tmp_path / "r")


def test_a_folder_is_opened_without_torch_or_ray(golden: Path) -> None:
    """Where results are read neither need be installed."""
    program = (
        "import sys\n"
        "from tuning.execute.result import StudyResult\n"
        "result = StudyResult.open(sys.argv[1])\n"
        "print(result.best(16).config.method, len(result._repr_html_()) > 100, {'torch', 'ray'} & sys.modules.keys())"
    )
    done = subprocess.run([sys.executable, "-c", program, str(golden)], capture_output=True, text=True)
    assert done.stdout == "local-sgd True set()\n", done.stderr


def test_the_plain_progress_is_a_line_at_the_end(capsys: pytest.CaptureFixture[str]) -> None:
    """And what there is to know, at once; where nothing ran, nothing."""
    quiet, plain = Plain(), Plain()
    quiet.start(3)
    quiet.finish()
    plain.start(3)
    for done in (1, 3):
        plain.update(done, 3, running=1, best="98.7 % csea R_C 16 lr 0.1", left_s=None)
    plain.note("a trial failed")
    plain.finish()
    assert capsys.readouterr() == ("", "a trial failed\nruns 3/3, best 98.7 % csea R_C 16 lr 0.1\n")
