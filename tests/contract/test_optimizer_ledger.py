"""Invariant 15: the bytes that the optimizers really send are those of which the budget speaks."""

from typing import Any

import pytest
import torch

from cser_ray.budget import Structure, ratio_of, rounds
from cser_ray.compressors import GRBS
from cser_ray.methods import METHODS
from cser_ray.optimizers import FlatOptimizer
from tests.contract.laws import N
from tests.contract.test_optimizers import CASES, FORMS, every_order
from tests.stacked import D, build, logistic, trajectory

STRUCTURE = Structure(6, 4, 8)


def structured(method: str) -> Structure:
    """`STRUCTURE` with the knobs that the method reads."""
    return Structure(**{knob: getattr(STRUCTURE, knob) for knob in METHODS[method].knobs})


def with_structure(method: str, order: str, size: int | None = None, **form: Any) -> FlatOptimizer:
    """A method at that structure."""
    s, spread = structured(method), METHODS[method].spread
    first = s.reset_ratio if spread is None else s.reset_ratio * spread(N)
    arguments = CASES[method].arguments(GRBS(first, order, size), GRBS(STRUCTURE.gradient_ratio, order, size))
    arguments |= {"reset_interval": s.reset_interval} if "reset_interval" in arguments else {}
    return build(method, N, **arguments, **form)


TO_NEIGHBOURS = ("d-psgd", "choco-sgd", "deepsqueeze")
"""Their bytes by hand are in test_bytes_by_hand.py; the first stands at one ratio, which follows from n."""


@pytest.mark.parametrize(("method", "form"), [(m, f) for m, f in FORMS if m != "d-psgd"])
@every_order
def test_15_the_ledger_shows_the_ratio_that_the_budget_promises(method: str, form: dict[str, Any], order: str) -> None:
    """Bytes and collectives over whole reset intervals are within 1 % of `ratio_of` and `rounds`."""
    optimizer = with_structure(method, order, **form)
    ledger, steps = optimizer.communicator.ledger, 44 * STRUCTURE.reset_interval
    for _ in trajectory(optimizer, lambda x, t: torch.zeros_like(x), steps):
        pass
    sent, dense = ledger.total(in_ratio=True), optimizer.communicator.dense_bytes(D, steps) * 2  # float64, not fp32
    promised = ratio_of(method, structured(method))
    assert sent.bytes * promised == pytest.approx(dense, rel=0.01) if sent.bytes else promised == float("inf")
    assert sent.collectives / steps == pytest.approx(rounds(method, structured(method)), rel=0.01)


@pytest.mark.parametrize(("method", "form"), [(m, f) for m, f in FORMS if m not in TO_NEIGHBOURS])
def test_15_every_call_is_charged_its_blocks(method: str, form: dict[str, Any]) -> None:
    """Blocks * block_size * itemsize * 2 (n - 1) / n bytes leave a worker, a short last block at its full size."""
    optimizer = with_structure(method, "cyclic", size=4, **form)
    communicator = optimizer.communicator
    entries = communicator.ledger.entries
    for t, _ in enumerate(trajectory(optimizer, logistic(N)), 1):
        for name, dense in {"gradient": method == "sgd", "reset": method in ("local-sgd", "diloco", "muloco")}.items():
            compressor = getattr(optimizer, f"{name}_compressor", None)
            calls = {"gradient": t, "reset": t // getattr(optimizer, "reset_interval", 1)}
            if method == "cser-release":
                calls["gradient"] -= calls["reset"]
            if dense:
                width, sent = D, calls[name]
                values = width * sent
            elif isinstance(compressor, GRBS):
                values = sum(len(compressor.blocks(D, call)) * 4 for call in range(1, calls[name] + 1))
            else:
                values = 0
            charged = entries[name].bytes if name in entries else 0.0
            assert charged == pytest.approx(values * 8 * 2 * (N - 1) / N, rel=1e-12)
