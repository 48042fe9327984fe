"""Today's systems for slow links: their papers' steps inside, in their papers' lines, late, and where they are others."""

import copy
import re
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import Parameter

from cser_ray.compressors import GRBS, ChunkedTopK, Identity
from cser_ray.methods import METHODS
from cser_ray.methods.rivals import RIVALS
from cser_ray.optimizers import (
    CSEA,
    CSERPL,
    SGD,
    SPARTA,
    DiLoCo,
    FlatOptimizer,
    LocalSGD,
    MuLoCo,
    PartialReset,
    SparseLoCo,
    StreamingDiLoCo,
)
from cser_ray.optimizers.local_steps import AdamW, Muon
from cser_ray.recursion import recursion
from cser_ray.seeds import Purpose
from cser_ray.train.build import optimizer_class
from tests.contract.test_partial_reset import places_of
from tests.processes import run_processes
from tests.stacked import LR, STEPS, build, compressed, distance, logistic, models, start, take_step, trajectory
from tests.workers_agree.training import network

H = 3
BETAS = (0.8, 0.9)
ADAMW: dict[str, Any] = {"inner": "adamw", "betas": BETAS}
FRAGMENTS = GRBS(2, "cyclic", 2)
"""Blocks of 2 cut d = 11 into 6, three for each of two fragments."""


def same(ours: FlatOptimizer, theirs: FlatOptimizer, n: int) -> bool:
    """Whether two take the same steps, bit for bit."""
    runs = (trajectory(optimizer, logistic(n)) for optimizer in (ours, theirs))
    return all(torch.equal(x, y) for x, y in zip(*runs, strict=True))


# ------------------------------------------------------------------------------------------------- by their papers' lines


def algorithm_1(n: int, c1: ChunkedTopK, alpha: float, beta: float) -> Iterator[Tensor]:
    """SparseLoCo as printed, around torch's AdamW: e_r = beta e_r + (theta - theta_r), what is sent leaves it."""
    theta = start(n)[0]
    e = torch.zeros_like(start(n))
    rows = [Parameter(theta.clone()) for _ in range(n)]
    apart = [torch.optim.AdamW([row], LR, BETAS, weight_decay=0.1) for row in rows]
    for t in range(1, STEPS + 1):
        gradients = logistic(n)(torch.stack([row.detach() for row in rows]), t)
        for row, g, optimizer in zip(rows, gradients, apart, strict=True):
            row.grad = g.clone()
            optimizer.step()
        if t % H == 0:
            sent = []
            for r, row in enumerate(rows):
                e[r] = beta * e[r] + (theta - row.detach())
                message = e[r] - c1.compress(e[r : r + 1], 1).residual()[0]
                e[r] -= message
                sent.append(message)
            theta = theta - alpha * torch.stack(sent).mean(0)
            for row in rows:
                row.data.copy_(theta)
        yield torch.stack([row.detach() for row in rows])


@pytest.mark.parametrize("n", [1, 2, 3, 8])
def test_sparseloco_is_its_algorithm_1(n: int) -> None:
    """With chunks of 4, of which 2 travel in two bits, at its paper's rho and another alpha."""
    c1 = ChunkedTopK(2, 4, "int2")
    ours = build("sparseloco", n, reset_interval=H, reset_compressor=c1, outer_lr=0.7, weight_decay=0.1, **ADAMW)
    for x, y in zip(trajectory(ours, logistic(n)), algorithm_1(n, c1, 0.7, 0.95), strict=True):
        assert distance(x, y) < 1e-11


@pytest.mark.parametrize("n", [1, 2, 3, 8])
def test_sparta_averages_the_chosen_parameters_and_no_other(n: int) -> None:
    """After torch's AdamW on each worker, `param[mask] = mean(param[mask])` with one mask for all."""
    chosen = GRBS(3, block_size=1).with_streams((0,), Purpose.RESET_BLOCKS, range(n))
    rows = [Parameter(row.clone()) for row in start(n)]
    apart = [torch.optim.AdamW([row], LR, BETAS, weight_decay=0.1) for row in rows]
    ours = build("sparta", n, reset_compressor=GRBS(3, block_size=1), weight_decay=0.1, **ADAMW)
    for t, x in enumerate(trajectory(ours, logistic(n)), 1):
        gradients = logistic(n)(torch.stack([row.detach() for row in rows]), t)
        for row, g, optimizer in zip(rows, gradients, apart, strict=True):
            row.grad = g.clone()
            optimizer.step()
        mask = torch.from_numpy(chosen.blocks(11, t))
        assert len(mask) in (3, 4)
        mean = torch.stack([row.detach() for row in rows])[:, mask].mean(0)
        for row in rows:
            row.data[mask] = mean
        assert distance(x, torch.stack([row.detach() for row in rows])) < 1e-11


@pytest.mark.parametrize("n", [1, 3, 8])
@pytest.mark.parametrize("delay", [0, 1, 4, 7])
def test_fragments_may_be_late(n: int, delay: int) -> None:
    """The recursion's delay: a fragment, or several under way, moved by the difference that its outer step makes."""
    outer: dict[str, Any] = {"outer_lr": 0.6, "outer_momentum": 0.8}
    ours = build(
        "streaming-diloco", n, reset_interval=H, reset_compressor=FRAGMENTS, reset_delay=delay, momentum=0.9, **outer
    )
    c1 = compressed(FRAGMENTS, Purpose.RESET_BLOCKS, n)
    theirs = recursion(
        start(n),
        logistic(n),
        c1,
        lambda v, t: torch.zeros_like(v),
        H,
        LR,
        0.9,
        gamma=1.0,
        outer=(0.6, 0.8),
        delay=delay,
        places=places_of(FRAGMENTS),
    )
    for x, (y, _) in zip(trajectory(ours, logistic(n)), theirs, strict=False):
        assert distance(x, y) < 1e-12


# ---------------------------------------------------------------------------------------------------- what they then are


@pytest.mark.parametrize("n", [1, 3])
def test_muloco_is_diloco_around_muon(n: int) -> None:
    """Bit for bit, with the outer step that its record and its class have."""
    usual = METHODS["muloco"].usual
    assert (usual["outer_lr"], usual["outer_momentum"]) == (0.7, 0.6)
    theirs = build(DiLoCo, n, reset_interval=H, inner="muon", outer_lr=0.7, outer_momentum=0.6)
    assert same(build(MuLoCo, n, reset_interval=H), theirs, n)


@pytest.mark.parametrize("n", [1, 3])
def test_where_everything_is_sent(n: int) -> None:
    """Ratio 1: SparseLoCo is local AdamW, SPARTA averages models every step, and one fragment is DiLoCo's."""
    whole: dict[str, Any] = {"reset_compressor": Identity()}
    assert same(build(SparseLoCo, n, reset_interval=H, **whole), build(LocalSGD, n, reset_interval=H, inner="adamw"), n)
    assert same(build(SPARTA, n, **whole), build(LocalSGD, n, reset_interval=1, inner="adamw"), n)
    assert same(build(StreamingDiLoCo, n, reset_interval=H, **whole), build(DiLoCo, n, reset_interval=H), n)


def test_without_an_outer_step_fragments_are_partial_averages() -> None:
    """CSER-PL with cyclic blocks, bit for bit; and SPARTA is CSEA around AdamW."""
    own: dict[str, Any] = {"reset_interval": H, "reset_compressor": FRAGMENTS}
    assert same(build(StreamingDiLoCo, 3, **own, outer_lr=1.0, outer_momentum=0.0), build(CSERPL, 3, **own), 3)
    single = GRBS(3, block_size=1)
    assert same(build(SPARTA, 3, reset_compressor=single), build(CSEA, 3, reset_compressor=single, inner="adamw"), 3)


def test_one_worker_of_muloco_without_an_outer_step_is_muon() -> None:
    """n = 1: the local step and nothing else; SPARTA's is AdamW, whatever is chosen."""
    plain = build(MuLoCo, 1, reset_interval=H, outer_lr=1.0, outer_momentum=0.0)
    for ours, inner in ((plain, "muon"), (build(SPARTA, 1, reset_compressor=GRBS(3, block_size=1)), "adamw")):
        for x, y in zip(
            trajectory(ours, logistic(1)), trajectory(build(SGD, 1, inner=inner), logistic(1)), strict=True
        ):
            assert distance(x, y) < 1e-12


@pytest.mark.parametrize(("kind", "step"), [(SparseLoCo, AdamW), (SPARTA, AdamW), (MuLoCo, Muon)])
def test_the_local_step_is_their_papers_where_nobody_says(kind: type[FlatOptimizer], step: type) -> None:
    """And another one where somebody does."""
    own: dict[str, Any] = {} if kind is SPARTA else {"reset_interval": H}
    assert isinstance(build(kind, 2, **own).local, step)
    assert not build(kind, 2, inner="nesterov", **own).local.name


@pytest.mark.parametrize("name", RIVALS)
def test_each_is_a_point_of_the_recursion(name: str) -> None:
    """None has an algorithm of its own."""
    assert issubclass(optimizer_class(name), PartialReset)
    assert "update" not in vars(optimizer_class(name))


# ------------------------------------------------------------------------------------------------------------ their state

STATES: dict[str, dict[str, Any]] = {
    "sparseloco": {"reset_interval": 4, "reset_compressor": ChunkedTopK(2, 4, "int2")},
    "muloco": {"reset_interval": 4},
    "sparta": {"reset_compressor": GRBS(3, block_size=1), "reset_delay": 3},
    "streaming-diloco": {"reset_interval": 4, "reset_compressor": FRAGMENTS, "reset_delay": 6},
}


@pytest.mark.parametrize("name", STATES)
@pytest.mark.parametrize("until", [1, 5, 6, 9, 10])
def test_a_state_goes_on_where_it_was_saved(name: str, until: int) -> None:
    """In mid-interval, with one and with two fragments under way, bit for bit."""
    first, second = build(name, 3, **STATES[name]), build(name, 3, **STATES[name])
    for _ in range(until):
        take_step(first, logistic(3))
    second.x.copy_(first.x.clone())
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    for _ in range(9):
        take_step(first, logistic(3))
        take_step(second, logistic(3))
    assert torch.equal(models(first), models(second))


def test_workers_with_other_seeds_or_knobs_are_told_so() -> None:
    """On every rank, by what differs, before anything is averaged."""

    def what_is_said(name: str, **own: Any) -> str:
        from cser_ray.optimizers import Placement

        odd = bool(dist.get_rank())
        seeds = {"placement": Placement(seeds=(int(odd),))} if not own else {}
        rest = {key: value[odd] for key, value in own.items()}
        try:
            optimizer_class(name)(network().parameters(), **STATES[name] | rest, **seeds)
        except RuntimeError as error:
            return str(error)
        return "nothing"

    def work() -> dict[str, str]:
        said = {name: what_is_said(name) for name in STATES}
        return said | {
            "rho": what_is_said("sparseloco", error_decay=(0.95, 0.9)),
            "fragments": what_is_said("streaming-diloco", reset_compressor=(FRAGMENTS, GRBS(3, "cyclic", 2))),
        }

    for said in run_processes(2, work):
        assert all(re.search(r"the seeds: \(1,\) on rank 1, \(0,\) on rank 0", said[name]) for name in STATES)
        assert "error_decay: 0.9 on rank 1, 0.95 on rank 0" in said["rho"]
        assert "'ratio': 3" in said["fragments"]
