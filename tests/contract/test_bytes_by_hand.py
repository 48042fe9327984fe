"""What the methods over a graph, those for slow links, `dgc` and `powersgd` put on the wire: by hand, record and ratio."""

from typing import Any

import pytest
import torch
from torch.nn import Parameter

from cser_ray.budget import ratio_of
from cser_ray.communication.communicator import Communicator
from cser_ray.compressors import GRBS, ChunkedTopK, TopK
from cser_ray.config import config_at
from cser_ray.methods import METHODS
from cser_ray.methods.rivals import RIVALS
from cser_ray.optimizers.systems.d_psgd import DPSGD
from cser_ray.structure import Structure
from cser_ray.train.build import make_optimizer
from tests.contract.test_systems import HAND as SYSTEM_BYTES
from tests.stacked import D, build, logistic, take_step

HAND: dict[str, tuple[dict[str, Any], dict[int, float]]] = {
    # d = 11 in float64: 88 bytes to one neighbour, and to two
    "d-psgd": ({}, {2: 88, 3: 176, 8: 176}),
    # 4 of 11 coordinates, 12 bytes each
    "choco-sgd": ({"compressor": TopK(3)}, {2: 48, 3: 96, 8: 96}),
    # 2 of 3 blocks of 4, 8 bytes each
    "deepsqueeze": ({"compressor": GRBS(1.5, block_size=4)}, {2: 64, 3: 128, 8: 128}),
    # P 2 x 1, Q 3 x 1 and a vector of 5, in a ring all-reduce
    "powersgd": ({"rank": 1}, {2: 80, 3: 80 * 4 / 3, 8: 80 * 14 / 8}),
    # 3 chunks of 4: two places of 2 bits, two values of 2 bits, two scales of 8 bytes, to everybody
    "sparseloco": (
        {"reset_interval": 1, "reset_compressor": ChunkedTopK(2, 4, "int2")},
        {2: 3 * 18, 3: 3 * 18 * 2, 8: 3 * 18 * 7},
    ),
    "muloco": ({"reset_interval": 1}, {2: 88, 3: 88 * 4 / 3, 8: 88 * 14 / 8}),
    # 4 single coordinates of 11
    "sparta": ({"reset_compressor": GRBS(2.75, block_size=1)}, {2: 32, 3: 32 * 4 / 3, 8: 32 * 14 / 8}),
    # the first 2 of 3 blocks of 4
    "streaming-diloco": (
        {"reset_interval": 1, "reset_compressor": GRBS(1.5, "cyclic", 4)},
        {2: 64, 3: 64 * 4 / 3, 8: 64 * 14 / 8},
    ),
    # 16 d / (12 n 1.1) = 6.67, 4.4 and 1.67 coordinates of 12 bytes, to everybody
    "dgc": ({"ratio": 1.1}, {2: 6 * 12, 3: 4 * 12 * 2, 8: 1 * 12 * 7}),
}


@pytest.mark.parametrize("method", HAND)
@pytest.mark.parametrize("n", [2, 3, 8])
def test_bytes_by_hand(method: str, n: int) -> None:
    """What the first step puts on the wire of each worker; two all-reduces for P and Q, else one round."""
    arguments, sent = HAND[method]
    optimizer = build(method, n, **arguments)
    take_step(optimizer, logistic(n))
    found = optimizer.communicator.ledger.total(in_ratio=True)
    assert found.bytes == pytest.approx(sent[n], rel=1e-12)
    assert found.collectives == METHODS[method].collectives == (2 if method == "powersgd" else 1)


RESET, BOTH = GRBS(1.5, block_size=4), GRBS(3, block_size=4)
OURS: dict[str, tuple[str, dict[str, Any], float, int]] = {
    # d = 11 in float64: 88 bytes around the ring, or 22 in 16 bits; 2 of 3 blocks of 4 are 64, one is 32
    "sgd": ("sgd", {}, 88, 1),
    "sgd-bf16": ("sgd", {"payload": torch.bfloat16}, 22, 1),
    "no-sync": ("no-sync", {}, 0, 0),
    "local-sgd": ("local-sgd", {"reset_interval": 1}, 88, 1),
    "diloco": ("diloco", {"reset_interval": 1}, 88, 1),
    "ef-sgd": ("ef-sgd", {"gradient_compressor": RESET}, 64, 1),
    "csea": ("csea", {"reset_compressor": RESET}, 64, 1),
    "qsparse": ("qsparse", {"reset_interval": 1, "reset_compressor": RESET}, 64, 1),
    "partial-reset": (
        "partial-reset",
        {"reset_interval": 1, "reset_compressor": RESET, "residual_in_model": 0.5},
        64,
        1,
    ),
    "cser-pl": ("cser-pl", {"reset_interval": 1, "reset_compressor": RESET}, 64, 1),
    "cser": ("cser", {"reset_interval": 1, "reset_compressor": RESET, "gradient_compressor": BOTH}, 64 + 32, 2),
    "cser-release": (
        "cser-release",
        {"reset_interval": 1, "reset_compressor": RESET, "gradient_compressor": BOTH},
        64,
        1,
    ),
}
OURS |= {
    name: (of, own | {"inner": METHODS[name].inner}, sent, collectives)
    for name in METHODS.builtin
    for of, own, sent, collectives in OURS.values()
    if METHODS[name].inner != "nesterov" and METHODS[name].optimizer == METHODS[of].optimizer and "payload" not in own
}
"""Name -> (the method whose class it is, arguments, bytes of what goes around the ring in the first step, collectives)."""


@pytest.mark.parametrize("method", OURS)
@pytest.mark.parametrize(("n", "times"), [(2, 1), (3, 4 / 3), (8, 7 / 4)])
def test_bytes_of_the_family_by_hand(method: str, n: int, times: float) -> None:
    """2 (n - 1) / n times what is sent leave each worker; a reset of CSER comes on top, one of its release does not."""
    of, arguments, sent, collectives = OURS[method]
    optimizer = build(of, n, **arguments)
    take_step(optimizer, logistic(n))
    found = optimizer.communicator.ledger.total(in_ratio=True)
    assert found.bytes == pytest.approx(sent * times, rel=1e-12)
    assert found.collectives == collectives


def test_every_method_is_counted_by_hand() -> None:
    """Here, or where the bytes are part of what is special: see test_systems.py."""
    elsewhere = {*SYSTEM_BYTES, "mem-sgd", "adacomp"}
    assert {*HAND, *OURS, *elsewhere} == set(METHODS.builtin)


@pytest.mark.parametrize("n", [2, 3, 8])
def test_the_record_of_d_psgd_knows_its_bytes(n: int) -> None:
    """`bytes_sent(d, n)` is the ledger's in fp32; at 8 workers it is more than dense training sends."""
    optimizer = build(DPSGD, n)
    promised = METHODS["d-psgd"].bytes_sent
    assert promised is not None
    take_step(optimizer, logistic(n))
    assert 2 * promised(D, n) == optimizer.communicator.ledger.entries["reset"].bytes
    assert ratio_of("d-psgd", Structure()) == optimizer.communicator.dense_bytes(D) / promised(D, n) if n == 8 else True


@pytest.mark.parametrize("method", ["choco-sgd", "deepsqueeze"])
@pytest.mark.parametrize("n", [2, 3, 8])
@pytest.mark.parametrize("text", ["top-k/4096", "top-k/512:int2", "random-k:int8", "top-k", "grbs:bf16"])
def test_messages_to_neighbours_meet_the_ratio_by_any_compressor(method: str, n: int, text: str) -> None:
    """They go to two, not to everybody: as many bytes as the ratio says, by the ledger."""
    config, d = config_at(method, 16.0, workers=n, compressor=text), 40_000
    optimizer = make_optimizer(config, [Parameter(torch.ones(n, d))], Communicator(n, group=None), 0.1, (0,))
    for _ in range(16):
        optimizer.step()
    sent = optimizer.communicator.ledger.total(in_ratio=True).bytes
    assert optimizer.communicator.dense_bytes(d, 16) / sent == pytest.approx(16.0, rel=0.02)


@pytest.mark.parametrize("method", ["dgc", "choco-sgd", "deepsqueeze", *RIVALS])
@pytest.mark.parametrize("n", [2, 3, 8])
def test_the_ratio_asked_for_is_that_of_the_bytes(method: str, n: int) -> None:
    """In fp32, at any number of workers, to 1 % over some 200 steps, 2 % in whole chunks: neighbours, indices are counted."""
    config = config_at(method, 6.0, workers=n)
    steps, chunks = 36 * config.reset_interval, METHODS[method].travels == "all-gather" and method in RIVALS
    parameters = [Parameter(torch.ones(n, 700))]
    optimizer = make_optimizer(config, parameters, Communicator(n, group=None), 0.1, (0,))
    for _ in range(steps):
        optimizer.step()
    sent = optimizer.communicator.ledger.total(in_ratio=True).bytes
    assert optimizer.communicator.dense_bytes(700, steps) / sent == pytest.approx(6.0, rel=0.02 if chunks else 0.01)
