"""Runs whose budget moves: the bytes are those of the ratio asked for, wherever the workers live, and after a resume too."""

from pathlib import Path
from typing import Any

import pytest
import torch

from cser_ray.budget import structure_for
from cser_ray.communication.communicator import Communicator
from cser_ray.config import RunConfig
from cser_ray.ratio_schedule import Guardrail
from cser_ray.train.checkpoints import Checkpoints
from cser_ray.train.loop import train
from cser_ray.train.record import TrialIdentity
from cser_ray.train.stack import Stack
from tests.processes import run_processes
from tests.train.points import CPU

N, STEPS, RATIO = 4, 64, 8.0
IDENTITY = TrialIdentity("study", "trial")
SCHEDULES = ("dense-start/0.5", "dense-end/0.25", "qsr", "guardrail/0.01")
CASES = [
    (method, schedule, compressor)
    for method, compressors in {"local-sgd": ["grbs"], "cser": ["grbs"], "qsparse": ["grbs", "top-k/512:int8"]}.items()
    for schedule in SCHEDULES
    for compressor in compressors
]
CASES += [(method, schedule, "grbs") for method in ("dgc", "mem-sgd") for schedule in SCHEDULES if schedule != "qsr"]
every_case = pytest.mark.parametrize("case", CASES, ids=" ".join)


def point(case: tuple[str, str, str], **values: Any) -> RunConfig:
    """A short run on digits in float64, so that who sums what does not matter."""
    method, schedule, compressor = case
    knobs = {"ratio_schedule": schedule, "compressor": compressor}
    structure = vars(structure_for(method, RATIO))
    return RunConfig(
        method=method, ratio=RATIO, workers=N, steps=STEPS, dtype="float32", **structure, **knobs, **values
    )


def trained(run: RunConfig, processes: int) -> tuple[torch.Tensor, float, float]:
    """Models of the workers here, the realised ratio, and the training loss."""
    communicator = Communicator(N // processes, None if processes == 1 else "default")
    stack: list[Stack] = []
    (row,) = train([run], communicator, CPU, IDENTITY, watch=lambda s, _: stack.append(s) or Nothing())  # type: ignore[func-returns-value]
    assert row.realised_ratio is not None
    assert row.train_loss is not None
    return stack[0].optimizer.x[0].clone(), row.realised_ratio, row.train_loss


class Nothing:
    """A context that does nothing."""

    def __enter__(self) -> None:
        """As any."""

    def __exit__(self, *_: object) -> None:
        """As any."""


@every_case
def test_the_bytes_are_those_of_the_ratio(case: tuple[str, str, str]) -> None:
    """By the ledger, within 2 %, over the whole run; and it trains."""
    _, realised, loss = trained(point(case), 1)
    assert realised == pytest.approx(RATIO, rel=0.02)
    assert loss < 1.0


def test_processes_take_the_same_steps() -> None:
    """With two workers in each of two processes; a guardrail decides alike everywhere."""
    cases = [case for case in CASES if case[2] == "grbs"]
    found = run_processes(2, lambda: [trained(point(case), 2) for case in cases])
    for k, case in enumerate(cases):
        expected, realised, _ = trained(point(case), 1)
        x = torch.cat([rank[k][0] for rank in found], 0)
        assert float((x - expected).abs().max() / expected.abs().max()) < 1e-4, case
        assert found[0][k][1] == pytest.approx(realised)


@pytest.mark.parametrize("case", [case for case in CASES if case[0] != "cser"], ids=" ".join)
def test_a_run_goes_on_in_the_phase_where_it_stopped(case: tuple[str, str, str], tmp_path: Path) -> None:
    """Stopped after an evaluation and resumed, it ends with the bits of one that was not."""

    class Stopped(Exception):  # no error
        pass

    def stop(epochs: Any, _: Any) -> None:
        if epochs[0].evaluation == 4:
            raise Stopped

    (whole,) = train([point(case)], Communicator(N, None), CPU, IDENTITY)
    with pytest.raises(Stopped):
        train([point(case)], Communicator(N, None), CPU, IDENTITY, stop, Checkpoints(str(tmp_path), "t", 0.0))
    (resumed,) = train([point(case)], Communicator(N, None), CPU, IDENTITY, None, Checkpoints(str(tmp_path), "t", 0.0))
    assert (resumed.test_loss, resumed.bytes_sent) == (whole.test_loss, whole.bytes_sent)
    assert resumed.steps_done == whole.steps_done


def test_a_guardrail_spends_more_where_the_run_leaves_its_band() -> None:
    """A loss that rises by more than the band, one that is no number, or workers that have parted."""
    guardrail = Guardrail(0.1)
    assert not guardrail.outside(1.0, 0.05)
    assert not guardrail.outside(1.05, 0.05)
    assert guardrail.outside(1.2, 0.05)
    assert guardrail.outside(0.9, 0.2)
    assert guardrail.outside(1.0, 0.0)  # 0.9 was the lowest
    assert guardrail.outside(float("nan"), 0.0)


def test_a_guardrail_moves_the_budget_of_a_run_and_no_other() -> None:
    """With a narrow band most segments get more and the last ones less; stacked runs would share one decision."""
    run = point(("cser-pl", "guardrail/0.001", "grbs"), evaluations=8)
    stack = Stack([run], Communicator(N, None), CPU)
    ratios = []
    for t, outside in zip(range(8, 64, 8), [False, True, True, False, False, False, False], strict=True):
        while stack.t < t:
            stack.step()
        stack.guard(float("nan") if outside else 1.0, 0.0, t + 8)
        ratios.append(stack.phases[-1].reset_ratio)
    assert ratios[0] == pytest.approx(run.reset_ratio)
    assert max(ratios[1:3]) < ratios[0]
    assert ratios[3:] == pytest.approx([ratios[3]] * 4)
    assert ratios[3] > ratios[0]
    with pytest.raises(ValueError, match="A guardrail follows the loss of one run"):
        Stack([run, point(("cser-pl", "guardrail/0.001", "grbs"), repeat=1)], Communicator(N, None), CPU)
