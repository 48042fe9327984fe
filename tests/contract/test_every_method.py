"""What no method may be without: a ratio of 1, a state in mid-delay, and a word where ranks have other seeds."""

from typing import Any

import pytest
import torch
from torch.nn import Parameter

from cser_ray.communication.communicator import Communicator
from cser_ray.compressors import Identity
from cser_ray.methods import METHODS
from cser_ray.train.build import make_optimizer
from tests.contract.test_optimizer_state import method_of, resumed
from tests.contract.test_optimizers import CASES
from tests.processes import run_processes
from tests.stacked import OPTIMIZERS, build, distance, logistic, trajectory
from tests.train.points import config

N = 3
DELAYED = [name for name in METHODS.builtin if "delay" in METHODS[name].variants]


def everything(method: str) -> dict[str, Any]:
    """Arguments by which a method of `CASES` sends everything in every step, and takes no outer step."""
    arguments = CASES[method].arguments(Identity(), Identity())
    plain = {"outer_lr": 1.0, "outer_momentum": 0.0, "reset_interval": 1, "consensus_rate": None}
    return {name: plain.get(name, value) for name, value in arguments.items()}


def alone(method: str, n: int) -> bool:
    """Whether workers never are one model: d-psgd's add steps of their own to the average of the models before."""
    return METHODS[method].silent or (method, n) == ("d-psgd", 3)


@pytest.mark.parametrize(("method", "n"), [(name, n) for name in CASES for n in (1, 3) if not alone(name, n)])
def test_at_ratio_one_it_is_sgd(method: str, n: int) -> None:
    """Around Nesterov's step, with H = 1 and nothing left out; a ring of three joins all. The systems': see their files."""
    ours = build(method, n, weight_decay=0.05, **everything(method))
    for x, y in zip(
        trajectory(ours, logistic(n)), trajectory(build("sgd", n, weight_decay=0.05), logistic(n)), strict=True
    ):
        assert distance(x, y) < 1e-12


@pytest.mark.parametrize("method", DELAYED)
@pytest.mark.parametrize("steps", [4, 5, 6, 7, 8])
def test_a_message_under_way_is_saved(method: str, steps: int) -> None:
    """Sent in step 4, due in step 7: a run that is stopped in between goes on bit for bit."""

    def make() -> Any:
        of = next(name for name, kind in OPTIMIZERS.items() if METHODS[name].optimizer == METHODS[method].optimizer)
        own: dict[str, Any] = {"reset_interval": 4} if "reset_interval" in METHODS[method].knobs else {}
        inner = METHODS[method].inner
        own |= {} if inner == "nesterov" else {"inner": inner}
        return method_of(of, reset_delay=3, **own)

    first = make()
    list(trajectory(first, logistic(N), steps))
    second = resumed(first, make)
    for x, y in zip(trajectory(first, logistic(N), 8), trajectory(second, logistic(N), 8), strict=True):
        assert torch.equal(x, y)


def test_other_seeds_on_one_rank_are_named_by_every_method() -> None:
    """On every rank, as a run builds it, before anything is averaged."""

    def said(method: str) -> str:
        communicator = Communicator(1)
        run = config(method, workers=2)
        try:
            make_optimizer(run, [Parameter(torch.zeros(1, 6000))], communicator, 0.1, (communicator.rank,))
        except RuntimeError as error:
            return str(error)
        return "nothing"

    for ranks in run_processes(2, lambda: {method: said(method) for method in METHODS.builtin}):
        silent = {m: text for m, text in ranks.items() if "the seeds: (1,) on rank 1, (0,) on rank 0" not in text}
        assert silent == {}
