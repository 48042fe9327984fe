"""Numbers among a model's buffers belong to one worker each: evaluation takes their mean, however the workers are placed."""

from typing import Any

import torch
from torch import Tensor

from cser_ray.communication.communicator import Communicator
from cser_ray.config import RunConfig
from cser_ray.train.stack import Stack
from tests.processes import run_processes

N, CPU = 4, torch.device("cpu")


def evaluated(communicator: Communicator) -> dict[str, Any]:
    """The buffers of the mean model after some steps, its validation accuracy, and the centres of the workers here."""
    config = RunConfig(method="local-sgd", task="tests.train.centred:CentredDigits", workers=N, ratio=8.0, steps=40)
    stack = Stack([config], communicator, CPU)
    for _ in range(40):
        stack.step()
    parameters, buffers, _ = stack.evaluator.mean_model()
    score = stack.evaluator.score(parameters, buffers, "validation")
    own: Tensor = stack.workers.buffers["centre"].clone()
    return {"centre": buffers["centre"][0].clone(), "third": buffers["third"][0].clone(), "own": own,
            "accuracy": float(score.metric[0])}  # fmt: skip


def test_they_are_the_mean_over_all_workers() -> None:
    """Virtual workers in one process, and two in each of two processes: the same; constants stay what they are."""
    virtual = evaluated(Communicator(N, group=None))
    real = run_processes(2, lambda: evaluated(Communicator(N // 2)))
    assert float(virtual["own"].std(0).max()) > 1e-3, "workers that see the same show nothing"
    torch.testing.assert_close(virtual["centre"], virtual["own"].mean(0))
    for part in real:
        torch.testing.assert_close(part["centre"], virtual["centre"])
        assert part["accuracy"] == virtual["accuracy"]
        assert part["third"] == virtual["third"] == torch.tensor(1 / 3)
