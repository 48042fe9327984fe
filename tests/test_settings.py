"""A setting is declared once: one added on the fly stands everywhere, and none that methods differ in has a winner."""

import math
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cser_ray.config import RunConfig, Shared
from cser_ray.methods import METHODS
from cser_ray.settings import Declared, Setting, declared
from tests.tuning.rows_factory import frame, grid
from tuning.compare.compare import compare

ROOT = Path(__file__).parents[1]
COMPARED = [each for each in declared(RunConfig) if each.setting.column and not each.setting.free]
every_compared = pytest.mark.parametrize("each", COMPARED, ids=lambda each: each.name)

NEW = '    label_smoothing: float = setting(0.0, "Label smoothing of the loss.", unit="nats", least=0, below=1)\n'
PROGRAM = """
import json, sys
from cser_ray.commands.cli import main
from cser_ray.config import RunConfig
from cser_ray.store.read import read_runs
from cser_ray.store.rows import RunRow, columns
from cser_ray.store.write import Store, check_same_study
from cser_ray.structure import Structure
from docs.generate import settings_page
from tests.tuning.rows_factory import frame, grid, run
from tuning.compare.compare import compare
from tuning.execute.single import _trial_id
from tuning.study.study import Study
from tuning.study.trials import Candidate
from tuning.take_home.push.runs import RESULTS, SETTINGS
from tuning.take_home.reproduce import recorded_config, settings_of_run, train_command

(column,) = (c for c in columns(RunRow) if c.name == "label_smoothing")
smooth = RunConfig(label_smoothing=0.3)
store = Store("results")
store.write_study({"fingerprint": {}})
with store.trial("t", 0) as writer:
    writer.runs([run(trial_id="t", run_id="r", **smooth.columns())])
old = {name: value for name, value in Study().fingerprint().items() if name != "label_smoothing"}
check_same_study(old, Study().fingerprint(), defaults=Study.defaults())
try:
    check_same_study(old, Study(label_smoothing=0.3).fingerprint(), defaults=Study.defaults())
except ValueError as error:
    refused = str(error)
better = grid("csea", [80.0, 81.0, 80.5, 80.2], label_smoothing=0.3)
others = [grid("local-sgd", [50.0, 51.3, 50.1, 50.4])]
print(json.dumps({
    "options": [[p.opts[0] for p in main.commands[name].params if p.name == "label_smoothing"] for name in ("tune", "train")],
    "column": [column.unit, column.doc, column.kind.__name__],
    "stored": float(read_runs("results")["label_smoothing"][0]),
    "problems": compare(frame(better, *others)).problems,
    "winner": compare(frame(better, *others)).verdicts[0].winner,
    "alike": compare(frame(grid("csea", [80.0, 81.0, 80.5, 80.2]), *others)).verdicts[0].winner,
    "pushed": ["label_smoothing" in SETTINGS, "label_smoothing" in RESULTS],
    "command": train_command(settings_of_run(smooth)),
    "recorded": recorded_config(json.dumps({"task": "digits", "method": "cser", "label_smoothing": 0.3})).label_smoothing,
    "study": Study(label_smoothing=0.3).run_config("sgd", 1.0, Candidate(0, Structure(), (0.1,)), 0.1, 0).label_smoothing,
    "names": [_trial_id(RunConfig()), _trial_id(smooth)],
    "refused": refused,
    "documented": [line for line in settings_page().splitlines() if "smoothing" in line],
}))
"""


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a copy of the packages says of a setting that is one more line in `Shared`, and nothing else."""
    import json

    copy = tmp_path_factory.mktemp("copy")
    for name in ("cser_ray", "tuning", "dashboards", "tests", "docs"):
        skipped = shutil.ignore_patterns("__pycache__", "golden", "*.png", "*.csv*", "vega.js")
        shutil.copytree(ROOT / name, copy / name, ignore=skipped)
    path = copy / "cser_ray" / "config.py"
    source = path.read_text()
    after = "    seed: int = setting("
    assert source.count(after) == 1
    path.write_text(source.replace(after, NEW + after))
    done = subprocess.run([sys.executable, "-c", PROGRAM], cwd=copy, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)  # type: ignore[no-any-return]


def test_a_new_setting_is_an_option_of_both_commands(found: dict[str, Any]) -> None:
    assert found["options"] == [["--label-smoothing"], ["--label-smoothing"]]


def test_a_new_setting_is_a_column_and_is_stored(found: dict[str, Any]) -> None:
    assert found["column"] == ["nats", "Label smoothing of the loss", "float"]
    assert found["stored"] == 0.3


def test_methods_that_differ_in_a_new_setting_have_no_winner(found: dict[str, Any]) -> None:
    """With the same rows but for it, csea wins."""
    assert found["problems"] == ["different label smoothing: 0 in local-sgd; 0.3 in csea"]
    assert (found["winner"], found["alike"]) == (None, "csea")


def test_push_files_a_new_setting_as_a_parameter(found: dict[str, Any]) -> None:
    assert found["pushed"] == [True, False]


def test_best_prints_a_new_setting(found: dict[str, Any]) -> None:
    assert "--label-smoothing 0.3" in found["command"]
    assert found["recorded"] == 0.3


def test_the_runs_of_a_study_have_a_new_setting(found: dict[str, Any]) -> None:
    assert found["study"] == 0.3


def test_earlier_folders_go_on_where_a_new_setting_is_at_its_default(found: dict[str, Any]) -> None:
    """A study and a single run: a new setting at its default changes no name; set, it is another study and run."""
    from tuning.execute.single import _trial_id

    assert found["names"][0] == _trial_id(RunConfig())
    assert found["names"][1] != found["names"][0]
    assert "label_smoothing 0.0 there, 0.3 here" in found["refused"]


def test_the_documents_list_a_new_setting(found: dict[str, Any]) -> None:
    """Among the settings, and among the columns."""
    assert [line.split(" | ")[0] for line in found["documented"]] == ["| `--label-smoothing`", "| `label_smoothing`"]


def other_value(each: Declared) -> Any:
    """A value that is not the default."""
    if each.setting.choices is not None:
        return next(name for name in each.setting.choices() if name != each.default)
    if each.kind in (bool, str):
        return not each.default if each.kind is bool else f"another-{each.name}"
    return type(each.default)(each.default + 1) if each.kind is int else (each.default or 1.0) / 2


@every_compared
def test_two_methods_that_differ_in_a_setting_have_no_winner(each: Declared) -> None:
    """Every setting that is not declared free; with the same value, the better method wins."""
    readers = [
        m for m in METHODS if METHODS[m].has_ratio and (not each.setting.by_method or each.name in METHODS[m].reads)
    ]
    one, other = readers[-2:]
    value = other_value(each)
    if each.name == "steps":
        value = 4 * each.default  # more than what rounding to a multiple of H explains
    same = {each.name: each.default} if each.kind is not str or each.default else {}
    better, worse = [80.0, 81.0, 80.5, 80.2], [50.0, 51.3, 50.1, 50.4]
    assert compare(frame(grid(one, better, **same), grid(other, worse, **same))).verdicts[0].winner == one
    rows = frame(grid(one, better, **same | {each.name: value}), grid(other, worse, **same))
    if each.name == "task":
        with pytest.raises(ValueError, match="runs of different task are not compared"):
            compare(rows)
        return
    unequal = compare(rows)
    assert unequal.verdicts[0].winner is None
    assert len(unequal.problems) == 1


def test_what_is_free_says_why() -> None:
    """All others are held alike: no setting is passed over in silence."""
    for each in declared(RunConfig):
        assert each in COMPARED or each.setting.free


def test_methods_say_which_settings_only_they_read() -> None:
    """The settings marked so are those that some record reads, and no other."""
    marked = {each.name for each in declared(RunConfig) if each.setting.by_method}
    assert marked == frozenset.union(*(method.reads for method in METHODS.values()))


@pytest.mark.parametrize(
    ("setting", "kind", "value", "message"),
    [
        (Setting("", least=1), int, 0, "x must be a whole number of at least 1, not 0"),
        (Setting("", least=1), int, 1.5, "x must be a whole number of at least 1, not 1.5"),
        (Setting("", above=0, below=math.inf), float, math.inf, "x must be above 0 and finite, not inf"),
        (Setting("", least=0, below=1), float, math.nan, "x must be at least 0 and below 1, not nan"),
        (Setting("", most=1), float, 2, "x must be at most 1, not 2"),
        (Setting(""), int, True, "x must be a whole number, not True"),
        (Setting("", choices=lambda: ("a", "b"), kind="letter"), str, "c", "there is no letter 'c'. Known: a, b"),
        (Setting("", above=0), tuple[float, ...], (1.0, 0.0), "x must be above 0, not 0.0"),
    ],
)
def test_a_value_that_cannot_be_is_refused(setting: Setting, kind: type, value: Any, message: str) -> None:
    """With its name, the rule and the value."""
    with pytest.raises(ValueError, match="^" + message.replace(".", r"\.") + "$"):
        setting.check("x", value, kind)


def test_shared_settings_are_those_of_a_study_and_of_its_runs() -> None:
    """Neither repeats one, but for overlap, which a study asks of its runs on real workers alone."""
    from tuning.study.study import Study

    shared = {each.name for each in declared(Shared)}
    assert shared < {each.name for each in declared(RunConfig)}
    assert {each.name for each in declared(RunConfig)} & {each.name for each in declared(Study)} == shared | {"overlap"}
