"""Every compressor trains alike with 8 virtual workers and in 4 processes: the same steps, the same ledger."""

import math
from functools import cache

import pytest
import torch

from cser_ray.communication.communicator import IN_RATIO
from cser_ray.compressors.solve import nearest, own_ratio
from cser_ray.compressors.text import FAMILIES, close, parse
from cser_ray.config import RunConfig
from cser_ray.tasks import make_task
from tests.processes import run_processes
from tests.train.points import config
from tests.train.test_system_twins import LEARNT, LOSS, PROCESSES, STEPS, Outcome, trained

TEXTS = (
    *("grbs", "grbs-cyclic:bf16", "random-k:int8", "top-k", "top-k/4096", "top-k/4096:int2", "top-k/4096:int4@two-way"),
    *("shared-top:int8", "sign", "qsgd"),
)
RATIO, INTERVAL = 8.0, 2
PLACES = ("grbs", "random-k")
"""Families that choose without a look at values, so that rounding decides nothing in float32."""
every_text = pytest.mark.parametrize("text", TEXTS)


def test_every_family_is_here() -> None:
    """But for the one that compresses nothing."""
    assert {parse(text).family for text in TEXTS} | {"identity", "top-k/4096"} == set(FAMILIES)


@cache
def parameters(task: str) -> int:
    """Of the task's model."""
    return sum(p.numel() for p in make_task(task).model().parameters() if p.requires_grad)


def point(text: str, task: str, dtype: str) -> RunConfig:
    """Part of the residual in the model, at a ratio that this compressor meets."""
    n = 4 if text == "qsgd" else 8  # at 8 workers it sends more than dense training
    own = own_ratio(nearest(parse(text), RATIO, parameters(task), n), parameters(task), n)
    small = {"batch_size": 1} if task == "pytext" else {}
    structure = {"reset_interval": INTERVAL, "reset_ratio": own, "ratio": own * INTERVAL}
    lr = {"digits": 0.05, "pytext": 0.1}[task]
    return config("partial-reset", task=task, workers=n, steps=STEPS[task], dtype=dtype, lr=lr, compressor=text,
                  **structure, **small)  # fmt: skip


@cache
def spread(task: str, dtype: str) -> list[dict[str, Outcome]]:
    """Of every rank, every compressor."""
    make_task(task).splits()
    return run_processes(
        PROCESSES, lambda: {text: trained(point(text, task, dtype), PROCESSES) for text in TEXTS}, timeout=600.0
    )


@cache
def virtual(text: str, task: str, dtype: str) -> Outcome:
    """All workers in this process."""
    return trained(point(text, task, dtype), 1)


@every_text
@pytest.mark.parametrize("task", STEPS)
def test_the_same_steps_and_the_same_bytes(text: str, task: str) -> None:
    """In float64, where no choice stands so close that rounding decides it; a value of 16 bits is rounded on every hop."""
    expected, ledger, loss = virtual(text, task, "float64")
    ranks = spread(task, "float64")
    found = torch.cat([rank[text][0] for rank in ranks])
    assert float((found - expected).abs().max() / expected.abs().max()) < (0.05 if ":bf16" in text else 1e-10)
    assert all(all(rank[text][1].get(name) == ledger.get(name) for name in IN_RATIO) for rank in ranks)
    assert loss < LEARNT[task]


@every_text
def test_the_ratio_is_the_ledgers(text: str) -> None:
    """Within 2 %, in float32, on digits; and the loss is that of the virtual workers."""
    run = point(text, "digits", "float32")
    _, ledger, loss = virtual(text, "digits", "float32")
    sent = sum(entry[0] for name, entry in ledger.items() if name in IN_RATIO)
    dense = 2 * (run.workers - 1) / run.workers * 4 * parameters("digits") * run.steps
    assert close(run.ratio, dense / sent)
    for rank in spread("digits", "float32"):
        assert math.isclose(rank[text][2], loss, abs_tol=1e-5 if parse(text).family in PLACES else LOSS["digits"])
