"""Without re-tuning, and how wide the range of good learning rates is: two columns by hand."""

import csv
import io
import json
from dataclasses import replace
from typing import Any

import pytest

from cser_ray.store.read import RunRow
from tests.tuning.rows_factory import SGD, frame, run
from tuning.compare.compare import compare
from tuning.compare.comparison import Cell
from tuning.compare.render import FORMATS, render

LOST: dict[str, Any] = {"diverged": True, "test_acc": None, "test_loss": None, "val_loss": None, "val_acc": None}


def at(lr: float, val_loss: float, test_acc: float = 50.0, repeats: int = 3, **values: Any) -> list[RunRow]:
    """Local SGD at one learning rate: the same on every repeat, but for a little noise in accuracy."""
    return [
        run(lr=lr, repeat=k, val_loss=val_loss, test_acc=test_acc + k - 1, test_loss=2 - test_acc / 50, **values)
        for k in range(repeats)
    ]


def cell(*rows: list[RunRow], method: str = "local-sgd") -> Cell:
    """The cell of a method in a study of these rows."""
    return next(c for c in compare(frame(*rows)).cells if c.method == method)


"""Its rate is 0.1, between worse ones at 0.05 and 0.2."""


def test_the_result_at_sgds_rate_by_hand() -> None:
    """Local SGD is best at 0.4, with 60 %; at sgd's 0.1 it has 49, 50 and 51 %, and a test loss of 1."""
    found = cell(SGD, at(0.1, 0.9), at(0.2, 0.8), at(0.4, 0.5, 60.0), at(0.8, 0.7))
    assert (found.lr, found.test_acc) == (0.4, 60.0)
    assert (found.untuned_lr, found.untuned_n, found.untuned_diverged) == (0.1, 3, 0)
    assert (found.untuned_test_acc, found.untuned_test_acc_std) == (50.0, 1.0)
    assert (found.untuned_test_loss, found.untuned_test_loss_std) == (1.0, 0.0)


def test_it_is_that_of_the_chosen_structure() -> None:
    """A structure that was not chosen may be better at sgd's rate: nobody would train with it."""
    other = at(0.1, 0.6, 55.0, reset_interval=8, reset_ratio=2.0)
    assert cell(SGD, at(0.1, 0.9), at(0.4, 0.5, 60.0), other).untuned_test_acc == 50.0


def test_it_is_empty_where_it_was_not_run() -> None:
    """Without sgd in the study, and where the method's grid leaves out sgd's rate."""
    alone = cell(at(0.1, 0.9), at(0.4, 0.5))
    assert (alone.untuned_lr, alone.untuned_n, alone.untuned_test_acc) == (None, 0, None)
    elsewhere = compare(frame(SGD, at(0.4, 0.5), at(0.8, 0.9)))
    found = next(c for c in elsewhere.cells if c.method == "local-sgd")
    assert (found.untuned_lr, found.untuned_n, found.untuned_test_acc) == (0.1, 0, None)
    row = next(r for r in csv.DictReader(io.StringIO(render(elsewhere, "csv"))) if r["method"] == "local-sgd")
    assert (row["untuned_lr"], row["untuned_test_acc"], row["untuned_test_loss"]) == ("0.1", "", "")


def test_divergence_at_sgds_rate_is_said() -> None:
    """Wholly, and in part with the mean of the others."""
    chosen = [*at(0.4, 0.5, 60.0), *at(0.8, 0.7)]
    lost = [replace(row, **LOST) for row in at(0.1, 0.9)]
    assert cell(SGD, chosen, lost).untuned_diverged == 3
    text = render(compare(frame(SGD, chosen, lost)))
    (line,) = [line for line in rates_of(text) if "local-sgd" in line]
    assert line.split()[:6] == ["16", "local-sgd", "0.4", "60.0±1.0", "0.1", "diverged"]
    partly = [lost[0], *at(0.1, 0.9)[1:]]
    assert "50.5±.7 (1/3 diverged)" in render(compare(frame(SGD, chosen, partly)))


def test_fewer_repeats_at_sgds_rate_are_said() -> None:
    """A rate that was only screened has one repeat, and no spread."""
    text = render(compare(frame(SGD, at(0.4, 0.5, 60.0), at(0.1, 0.9, repeats=1))))
    assert "49.0 (n = 1)" in text


def test_adamw_is_asked_at_the_rate_of_dense_adamw() -> None:
    """SGD's rate says nothing to it."""
    adamw = [
        run("adamw", ratio=1.0, lr=lr, val_loss=loss, reset_interval=None) for lr, loss in ((0.001, 0.4), (0.01, 0.6))
    ]
    local = [run("local-adamw", lr=lr, val_loss=0.5 + lr) for lr in (0.001, 0.01)]
    assert cell(SGD, adamw, local, method="local-adamw").untuned_lr == 0.001


@pytest.mark.parametrize(
    ("losses", "width", "is_open"),
    [
        ({0.05: 0.9, 0.1: 0.54, 0.2: 0.5, 0.4: 0.55, 0.8: 0.9}, 4.0, False),
        ({0.05: 0.9, 0.1: 0.56, 0.2: 0.5, 0.4: 0.56, 0.8: 0.5001}, 1.0, False),
        ({0.1: 0.5, 0.2: 0.51, 0.4: 0.9}, 2.0, True),
        ({0.1: 0.9, 0.2: 0.52, 0.4: 0.5}, 2.0, True),
        ({0.1: 0.9, 0.4: 0.5}, 1.0, True),
        ({0.4: 0.5}, None, False),
    ],
)
def test_the_range_by_hand(losses: dict[float, float], width: float | None, is_open: bool) -> None:
    """Neighbours at most 10 % worse than the best count, up to the first that is not: 0.8 behind a bad 0.4 does not."""
    found = cell([row for lr, loss in losses.items() for row in at(lr, loss)])
    assert found.lr_range == (None if width is None else pytest.approx(width))
    assert found.lr_range_open == is_open


def test_a_rate_with_a_diverged_repeat_is_not_good() -> None:
    """Whatever its other repeats are."""
    shaky = at(0.2, 0.5)
    shaky[1] = replace(shaky[1], **LOST)
    assert cell(at(0.1, 0.5), shaky, at(0.05, 0.9)).lr_range == 1.0


def test_rates_are_compared_on_their_common_repeats() -> None:
    """Repeat 0 is a hard one, at every rate: 0.8 on it is as good as 0.8, though the best has 0.6 on average."""
    best = [replace(row, val_loss=loss) for row, loss in zip(at(0.1, 0.0), (0.8, 0.5, 0.5), strict=True)]
    screened = at(0.2, 0.82, repeats=1)
    assert cell(best, screened, at(0.4, 2.0, repeats=1)).lr_range == pytest.approx(2.0)


def test_every_format_has_both() -> None:
    """As a table in text and markdown, as columns in csv and json, with the range explained."""
    comparison = compare(frame(SGD, at(0.05, 0.9), at(0.1, 0.54), at(0.2, 0.5, 60.0), at(0.4, 0.9)))
    texts = {format: render(comparison, format) for format in FORMATS}
    (line,) = [line for line in rates_of(texts["table"]) if "local-sgd" in line]
    assert line.split() == ["16", "local-sgd", "0.2", "60.0±1.0", "0.1", "50.0±1.0", "1.000±.000", "2×"]
    assert "| 16 | local-sgd | 0.2 | 60.0±1.0 | 0.1 | 50.0±1.0 | 1.000±.000 | 2× |" in texts["markdown"]
    assert "good range: largest over smallest of the neighbouring rates" in texts["table"]
    found = next(c for c in json.loads(texts["json"])["cells"] if c["method"] == "local-sgd")
    assert (found["untuned_test_acc"], found["lr_range"], found["lr_range_open"]) == (50.0, 2.0, False)
    assert {"untuned_test_acc", "untuned_test_loss", "lr_range"} <= set(texts["csv"].splitlines()[0].split(","))


def rates_of(text: str) -> list[str]:
    """The lines of the table of learning rates."""
    return text[text.index("Learning rates: as tuned") : text.index("What they communicate")].splitlines()
