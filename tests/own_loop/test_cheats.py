"""A loop that treats one method better than the others is found out by what it did, and no winner is marked."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from cser_ray.own_loop import Run
from cser_ray.store.rows import RunRow
from tests.own_loop.loops import data, network, row_of
from tests.tuning.rows_factory import frame
from tuning.compare.compare import compare
from tuning.compare.fairness_of_loops import loop_problems
from tuning.compare.selection import records

METHODS = ("csea", "local-sgd")
FAVOURED = "csea"
_KNOWN: dict[tuple[Any, ...], RunRow] = {}


def cheating(cheat: str) -> Callable[[Run], None]:
    """A loop that does something else for the favoured method."""

    def loop(run: Run) -> None:
        mine = run.config.method == FAVOURED
        batch = 8 if mine and cheat == "bigger batches" else 4
        loader, inputs, targets = data(run, batch)
        if mine and cheat == "other start":
            torch.manual_seed(99)
            model = nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.1), nn.Tanh(), nn.Linear(8, 2))
        else:
            model = network(run)
        decay = 0.1 if mine and cheat == "weight decay" else 0.0
        optimizer = run.optimizer(model.parameters(), weight_decay=decay)
        micro = 2 if mine and cheat == "accumulation" else 1
        for step, given in run.steps(loader, accumulate=micro):
            batches = given if micro > 1 else [given]
            times = 2 if mine and cheat == "twice a step" else 1
            for _ in range(times):
                factor = 1.0 if mine and cheat == "schedule" else 1 - (step - 1) / run.steps_total
                if mine and cheat == "warm-up":
                    factor *= min(1.0, step / 4)
                for group in optimizer.param_groups:
                    group["lr"] = factor * run.config.lr
                for x, y in batches:
                    nn.functional.mse_loss(model(x), y).backward()
                optimizer.step()
                optimizer.zero_grad()
            also = mine and cheat == "more evaluations" and step % 4 == 2
            if (run.evaluation_due(step) and not (mine and cheat == "fewer evaluations" and step < 8)) or also:
                run.report(val_loss=nn.functional.mse_loss(model(inputs), targets).item())
            if mine and cheat == "longer" and step == run.steps_total:
                nn.functional.mse_loss(model(inputs), targets).backward()
                optimizer.step()
                optimizer.zero_grad()

    return loop


def rows(cheat: str, steps: int = 16) -> list[RunRow]:
    """Of both methods, one repeat each."""
    found = []
    for method in METHODS:
        key = (cheat if method == FAVOURED else "", method, steps)
        if key not in _KNOWN:
            _KNOWN[key] = row_of(cheating(cheat), method, steps=steps)[0]
        found.append(_KNOWN[key])
    return found


def said(cheat: str, steps: int = 16) -> list[str]:
    """The problems that a comparison names."""
    return list(compare(frame(rows(cheat, steps))).problems)


def test_an_equal_loop_has_no_problem() -> None:
    """Also where local SGD's interval makes its run longer than the other's: 20 steps beside 18."""
    assert said("") == []
    assert said("", steps=18) == []


@pytest.mark.parametrize(
    ("cheat", "quantity"),
    [
        ("bigger batches", "different batch size: 4 in local-sgd; 8 in csea"),
        ("bigger batches", "different samples a worker and step: 8 in csea; 4 in local-sgd"),
        ("accumulation", "different samples a worker and step: 8 in csea; 4 in local-sgd"),
        ("twice a step", "1 finished runs took more steps than they were asked for: csea"),
        ("longer", "1 finished runs took more steps than they were asked for: csea"),
        ("schedule", "different courses of the learning rate in 16 steps"),
        ("warm-up", "different courses of the learning rate in 16 steps"),
        ("more evaluations", "different numbers of evaluations: 8 in csea; 4 in local-sgd"),
        ("fewer evaluations", "different numbers of evaluations: 3 in csea; 4 in local-sgd"),
        ("weight decay", "different weight decay: 0 in local-sgd; 0.1 in csea"),
        ("other start", "different initial models, or first batches, in repeat 0"),
    ],
)
def test_a_cheat_is_named_with_its_method_and_quantity(cheat: str, quantity: str) -> None:
    """A comparison says what differed, in which method, and marks no winner."""
    assert any(quantity in each for each in said(cheat)), said(cheat)
    assert all(verdict.winner is None for verdict in compare(frame(rows(cheat))).verdicts)


def test_another_schedule_is_found_in_runs_of_other_lengths() -> None:
    """Where an interval has made runs longer their rates cannot be equal bit by bit; a constant one still differs."""
    found = "; ".join(loop_problems(records(frame(rows("schedule", steps=18)))))
    assert "mean learning rates differ, as a share of the trial's: 0.5" in found
    assert "in csea" in found
    assert "in local-sgd" in found
