"""Whoever takes a results folder chooses in it as its study did: by the rule in study.json, unless told otherwise."""

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest

from cser_ray.config import config_at
from cser_ray.store.read import RunRow
from cser_ray.store.write import Store
from dashboards.snapshot import read_snapshot
from dashboards.views import payload
from tests.tuning.command_line import cli
from tests.tuning.rows_factory import run
from tests.tuning.study_factory import small
from tuning.study.starts import starts_from
from tuning.take_home.push.runs import read_pushed

LOSS, ACCURACY = 4, 8
"""H of the structure with the least validation loss, and of the one with the highest validation accuracy."""


def row(interval: int, val_loss: float, val_acc: float) -> RunRow:
    """A finished run of cser-pl at R_C = 16."""
    config = config_at("cser-pl", 16.0, interval, task="mnist1d", lr=0.1)
    knobs = {"reset_interval": interval, "reset_ratio": 16.0 / interval, "config_json": json.dumps(asdict(config))}
    knobs["config_json"] = str(knobs["config_json"]).replace("Infinity", '"inf"')
    return run("cser-pl", trial_id=f"cser-pl-16-H{interval}", val_loss=val_loss, val_acc=val_acc, **knobs)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A study that chose by validation accuracy, where validation loss would choose another structure."""
    store = Store(str(tmp_path_factory.mktemp("study") / "results"))
    store.write_study({"fingerprint": {"task": "mnist1d", "select": "val-acc"}})
    for one in (row(LOSS, 0.5, 60.0), row(ACCURACY, 0.6, 70.0)):
        with store.trial(one.trial_id, 0) as writer:
            writer.runs([one])
    return store.uri


def of_compare(folder: str, *select: str) -> int:
    """H in the table of `compare`."""
    (cell,) = json.loads(cli("compare", folder, "--format", "json", *select).stdout)["cells"]
    return int(cell["reset_interval"])


def of_all(folder: str, *select: str) -> int:
    """H of the chosen row of `compare --all`."""
    rows = json.loads(cli("compare", folder, "--all", "--format", "json", *select).stdout)
    return next(int(row["reset_interval"]) for row in rows if row["chosen"])


def of_best(folder: str, *select: str) -> int:
    """H in the settings of `best`."""
    return int(cli("best", folder, "--ratio", "16", *select).stdout.partition("reset-interval: ")[2].split()[0])


def of_export(folder: str, *select: str) -> int:
    """H of the run whose model `export` looks for, and does not find."""
    said = cli("export", folder, "--ratio", "16", *select).output.replace("\n", " ")
    return int(said.partition("has no model of cser-pl-16-H")[2].split("-")[0])


def of_page(folder: str, *select: str) -> int:
    """H of the page's cell."""
    (cell,) = payload(read_snapshot(folder, select[1] if select else None))["decision"]["cells"]
    return int(str(cell["facts"]).partition("H ")[2].split(",")[0])


TAKERS = (of_compare, of_all, of_best, of_export, of_page)


@pytest.mark.parametrize("taker", TAKERS)
def test_the_study_s_rule_is_followed(folder: str, taker: Callable[..., int]) -> None:
    """The most accurate structure stands, not the one with the least loss."""
    assert taker(folder) == ACCURACY


@pytest.mark.parametrize("taker", TAKERS)
def test_another_rule_is_followed_where_it_is_asked_for(folder: str, taker: Callable[..., int]) -> None:
    """`--select` goes before the study's."""
    assert taker(folder, "--select", "val-loss") == LOSS


def test_a_plan_follows_the_study_s_rule(folder: str) -> None:
    """What it predicts is the structure that the study chose."""
    job = ("--params", "1000000", "--step-ms", "20", "--workers", "8", "--rate", "1gbit", "--methods", "cser-pl")
    said = json.loads(cli("plan", *job, "--study", folder, "--format", "json").stdout)
    assert {line["reset_interval"] for line in said["lines"] if line["method"] == "cser-pl"} == {ACCURACY}


def test_a_study_starts_from_what_an_earlier_one_chose(folder: str) -> None:
    """By the earlier one's rule, whatever its own is."""
    new = small(methods=("cser-pl",), ratios=(16.0,), select="val-loss")
    assert [start[2] for start in starts_from(new, [folder])] == [ACCURACY]


def test_trackers_are_told_the_study_s_rule(folder: str) -> None:
    """Optuna's objective is what the study chose by."""
    assert read_pushed(folder).select == "val-acc"


def test_a_rule_that_is_none_is_named(tmp_path: Path) -> None:
    """A study.json may be anybody's."""
    store = Store(str(tmp_path / "r"))
    store.write_study({"fingerprint": {"select": ["val-loss"]}})
    assert "Known: val-loss, val-acc, train-loss" in cli("compare", store.uri).output
