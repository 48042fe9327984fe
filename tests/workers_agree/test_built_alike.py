"""Workers that are not the same program are told so before they mix numbers: which rank differs, and in what."""

import re
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.nn import Parameter

from cser_ray.compressors import GRBS, QSGD, TopK
from cser_ray.optimizers import CSEA, CSER, EFSGD, SGD, DiLoCo, LocalSGD, Placement
from tests.processes import run_processes
from tests.workers_agree.training import network, train


def frozen_bias(odd: bool) -> Iterable[Parameter]:
    model = network()
    if odd:
        model[0].bias.requires_grad_(False)
    return model.parameters()


def ordered(odd: bool) -> Iterable[Parameter]:
    parameters = list(network(5).parameters())  # a [5, 5] and others
    return reversed(parameters) if odd else parameters


DIFFERENCES: dict[str, tuple[Callable[[bool], Any], str]] = {
    "ratio": (
        lambda odd: CSEA(network().parameters(), reset_compressor=GRBS(5 if odd else 4)),
        r"reset_compressor: .*'ratio': 5.* on rank 2, .*'ratio': 4.* on rank 0",
    ),
    "block order": (
        lambda odd: CSEA(network().parameters(), reset_compressor=GRBS(4, "cyclic" if odd else "random")),
        "'order': 'cyclic'.* on rank 2",
    ),
    "block size": (
        lambda odd: CSEA(network().parameters(), reset_compressor=GRBS(4, block_size=2 if odd else 3)),
        "'block_size': 2",
    ),
    "compressor": (
        lambda odd: EFSGD(network().parameters(), gradient_compressor=QSGD(4) if odd else TopK(4)),
        r"gradient_compressor: \('QSGD'.* on rank 2, \('TopK'",
    ),
    "interval": (
        lambda odd: LocalSGD(network().parameters(), reset_interval=4 if odd else 8),
        "reset_interval: 4 on rank 2, 8 on rank 0",
    ),
    "outer rate": (
        lambda odd: DiLoCo(network().parameters(), reset_interval=4, outer_lr=0.7 if odd else 0.8),
        "outer_lr: 0.7 on rank 2, 0.8 on rank 0",
    ),
    "delay": (
        lambda odd: CSER(network().parameters(), reset_delay=int(odd)),
        "reset_delay: 1 on rank 2, 0 on rank 0",
    ),
    "implementation": (
        lambda odd: CSER(network().parameters(), implementation="I" if odd else "II"),
        r"the method: 'CSER \(implementation I\)' on rank 2",
    ),
    "overlap": (lambda odd: SGD(network().parameters(), overlap=odd), "overlap: True on rank 2, False on rank 0"),
    "payload": (
        lambda odd: SGD(network().parameters(), payload=torch.bfloat16 if odd else None),
        "payload: torch.bfloat16 on rank 2",
    ),
    "method": (
        lambda odd: SGD(network().parameters()) if odd else LocalSGD(network().parameters(), reset_interval=1),
        "the optimizer's class: 'SGD' on rank 2, 'LocalSGD' on rank 0",
    ),
    "local step": (
        lambda odd: SGD(network().parameters(), betas=(0.9, 0.99) if odd else None),
        "'SGD with AdamW' on rank 2, 'SGD' on rank 0",
    ),
    "seeds": (
        lambda odd: SGD(network().parameters(), placement=Placement(seeds=(int(odd),))),
        r"the seeds: \(1,\) on rank 2, \(0,\) on rank 0",
    ),
    "rate": (lambda odd: SGD(network().parameters(), 0.2 if odd else 0.1), "number 0: .*'lr': 0.2.* on rank 2"),
    "width": (
        lambda odd: SGD(network(8 if odd else 7).parameters()),
        r"the parameters, number 0: \(\(8, 5\), .* on rank 2, \(\(7, 5\)",
    ),
    "a parameter more": (
        lambda odd: SGD(network(bias=not odd).parameters()),
        r"the parameters, number 1: \(\(3, 7\), .* on rank 2, \(\(7,\)",
    ),
    "a frozen bias": (lambda odd: SGD(frozen_bias(odd)), "number 1: .*'frozen'.* on rank 2, .*'trained'"),
    "order": (lambda odd: SGD(ordered(odd)), r"number 0: \(\(3,\)"),
    "type": (
        lambda odd: SGD((network().float() if odd else network()).parameters()),
        r"'torch.float32', .* on rank 2, .*'torch.float64'",
    ),
}


def test_a_rank_built_otherwise_is_named_with_the_difference() -> None:
    """On every rank, when the optimizer is built: nothing has been averaged by then, and nothing hangs."""

    def what_is_said(build: Callable[[bool], Any]) -> str:
        try:
            build(dist.get_rank() == 2)
        except RuntimeError as error:
            return str(error)
        return "nothing"

    def work() -> dict[str, str]:
        return {difference: what_is_said(build) for difference, (build, _) in DIFFERENCES.items()}

    for said in run_processes(3, work):
        silent = {
            name: said[name] for name, (_, expected) in DIFFERENCES.items() if not re.search(expected, said[name])
        }
        assert silent == {}


def test_a_rate_that_comes_to_differ_is_noticed() -> None:
    """As from a schedule that follows each worker's own loss."""

    def work() -> None:
        model = network()
        optimizer = LocalSGD(model.parameters(), lr=0.1, reset_interval=2)
        train(model, optimizer, 5)
        optimizer.param_groups[0]["lr"] = 0.1 if dist.get_rank() else 0.05
        with pytest.raises(RuntimeError, match=r"'lr': 0.1.* on rank 1, .*'lr': 0.05.* on rank 0"):
            train(model, optimizer, 3)

    run_processes(2, work)


@pytest.mark.parametrize(
    "build", [lambda p: SGD(p), lambda p: EFSGD(p, gradient_compressor=GRBS(3))], ids=["sgd", "ef"]
)
def test_a_model_changed_on_one_rank_is_noticed_where_all_are_equal(build: Callable[[Any], Any]) -> None:
    def work() -> None:
        model = network()
        optimizer = build(model.parameters())
        train(model, optimizer, 5)
        if dist.get_rank():
            with torch.no_grad():
                model[0].weight.mul_(1.5)
        with pytest.raises(RuntimeError, match="The workers differ in the model, which this method keeps equal"):
            train(model, optimizer, 3)

    run_processes(2, work)
