"""Runs whose compressor goes two ways: the ratio they are asked for, processes, checkpoints, and other numbers of workers."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from cser_ray.communication.communicator import Communicator
from cser_ray.communication.host_communicator import HostCommunicator
from cser_ray.compressors.text import check_kind
from cser_ray.config import RunConfig
from cser_ray.methods import METHODS
from cser_ray.tasks import make_task
from cser_ray.train.stack import Stack
from tests.processes import run_processes
from tests.train.points import CPU, config
from tests.train.test_checkpoints import STOP, assert_same_end, continued, stacked
from tests.train.test_redistribute import going_on, mean, stopped
from tests.train.test_twins import outcome
from tuning.study.study import Study

BOTH = "top-k/4096@two-way"
TWO_WAY = {"compressor": BOTH}
HOLDERS = ("ef-sgd", "qsparse", "csea", "cser-pl", "cser", "partial-reset", "csea-adamw", "cser-adamw")
"""Methods that take any compressor and send to all."""


def realised(asked: RunConfig, communicator: Communicator) -> float:
    """R_C by the ledger, after two intervals."""
    stack = Stack([asked], communicator, CPU)
    for _ in range(2 * asked.reset_interval):
        stack.step()
    sent = communicator.ledger.total(in_ratio=True).bytes
    return communicator.dense_bytes(stack.n_params, stack.t) / sent


def test_methods_that_take_any_compressor_take_it() -> None:
    """The others say why not, in one sentence: neighbours own no parts, and the released code needs shared blocks."""
    refused = {}
    for name in METHODS.builtin:
        try:
            check_kind(name, BOTH)
        except ValueError as error:
            refused[name] = str(error)
    assert set(METHODS.builtin) - refused.keys() == set(HOLDERS)
    assert {n for n, words in refused.items() if "owners of parts" in words} == {"choco-sgd", "deepsqueeze"}
    assert "all workers chose alike" in refused["cser-release"]


@pytest.mark.parametrize("text", [BOTH, "top-k/4096:int2@two-way"])
@pytest.mark.parametrize("task", ["digits", "pytext"])
def test_the_ratio_asked_is_the_ledgers(task: str, text: str) -> None:
    """Within 2 %, between 8 virtual workers and between two processes: the number of workers is not in the formula."""
    make_task(task).splits()
    own: dict[str, Any] = {"task": task, "compressor": text, "batch_size": 2, "reset_interval": 2, "reset_ratio": 16.0}
    many, two = (config("cser-pl", workers=n, ratio=32.0, **own) for n in (8, 2))
    assert realised(many, Communicator(8, group=None)) == pytest.approx(32, rel=0.02)
    assert run_processes(2, lambda: realised(two, Communicator())) == [pytest.approx(32, rel=0.02)] * 2


@pytest.mark.parametrize("method", HOLDERS[:6])
def test_processes_take_the_steps_of_virtual_workers(method: str) -> None:
    """8 workers in one process, and in two with four each: parameters, and the bytes."""
    asked = config(method, workers=8, steps=8, dtype="float64", batch_size=4, **TWO_WAY)
    expected, ledger = outcome([asked], 1)
    found = run_processes(2, lambda: outcome([asked], 2))
    x = torch.cat([ranks[0] for ranks in found], 1)
    assert float((x - expected).abs().max() / expected.abs().max()) < 1e-10
    assert all(ranks[1] == ledger for ranks in found)


@pytest.mark.parametrize("method", HOLDERS)
def test_a_trial_goes_on_with_the_same_bits(method: str, tmp_path: Path) -> None:
    """What owners remember is in its checkpoint."""
    whole, again = continued(stacked(method, **TWO_WAY), str(tmp_path))
    assert_same_end(whole, again)
    assert any(c.memory.any() for c in whole[0].optimizer.remembered.values())
    for name, compressor in whole[0].optimizer.remembered.items():
        assert torch.equal(compressor.memory, again[0].optimizer.remembered[name].memory)


@pytest.mark.parametrize("per_worker", [1, 2])
def test_processes_go_on_with_the_same_bits(per_worker: int, tmp_path: Path) -> None:
    """Each owner finds its own part; also where a worker is a host of several processes."""
    configs = stacked("cser", workers=2, processes_per_worker=per_worker, **TWO_WAY)
    Stack([dataclasses.replace(c, processes_per_worker=1) for c in configs], Communicator(2, group=None), CPU)
    make = Communicator if per_worker == 1 else lambda: HostCommunicator(per_worker)
    run_processes(2 * per_worker, lambda: assert_same_end(*continued(configs, str(tmp_path), make)))


@pytest.mark.parametrize("method", ["ef-sgd", "qsparse", "cser", "partial-reset"])
def test_other_workers_go_on_without_what_owners_remembered(method: str, tmp_path: Path) -> None:
    """From four to two: its parts are not theirs, as with dist-ef-sgd. All start from the mean model and error."""
    before, _ = stopped(tmp_path, method, **TWO_WAY)
    assert any(c.memory.any() for c in before.optimizer.remembered.values())
    after, _ = going_on(tmp_path, method, 2, **TWO_WAY)
    old, new = before.optimizer, after.optimizer
    sign = {"ef-sgd": -1, "qsparse": 1}.get(method, 0)
    expected = mean(old.x) + mean(
        old.buffers().get("aside", sign * old.buffers().get("error", torch.zeros_like(old.x)))
    )
    torch.testing.assert_close(new.x, expected.expand_as(new.x), rtol=1e-6, atol=1e-7)
    assert torch.equal(new.x, new.x[:, :1].expand_as(new.x))
    assert not any(c.memory.any() for c in new.remembered.values())
    while after.t < STOP + 5:
        after.step()


def test_a_study_tries_it_where_a_method_takes_it() -> None:
    """And its ratios are met in whole chunks; other methods are tuned without."""
    study = Study(methods=("cser", "choco-sgd"), ratios=(32.0,), compressors=(BOTH, "grbs"), workers=8)
    first = {method: study.candidates(method, 32.0)[0] for method in ("cser", "choco-sgd")}
    assert {method: each.knobs.compressor for method, each in first.items()} == {"cser": BOTH, "choco-sgd": "grbs"}
    assert study.why_not("cser", first["cser"].structure, first["cser"].knobs) == ""
