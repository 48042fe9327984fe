"""Workers of several processes: n hosts of k ranks are n workers of k times the batch, in values and in bytes."""

import weakref
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from cser_ray.communication.communicator import IN_RATIO, Communicator, Entry
from cser_ray.communication.host_communicator import HostCommunicator
from cser_ray.compressors import GRBS, TopK
from cser_ray.optimizers import CSEA, CSER, SGD, FlatOptimizer, LocalSGD, QSparseLocalSGD
from tests.beside_sgd import network
from tests.processes import run_processes

HOSTS, RANKS, STEPS, BATCH = 2, 2, 20, 8
CSER_ARGUMENTS = {"reset_interval": 3, "reset_compressor": GRBS(2), "gradient_compressor": GRBS(3)}
METHODS: dict[str, tuple[Callable[..., FlatOptimizer], dict[str, Any]]] = {
    "sgd": (SGD, {}),
    "sgd, overlap": (SGD, {"overlap": True}),
    "adamw": (SGD, {"betas": (0.8, 0.9)}),
    "local-sgd": (LocalSGD, {"reset_interval": 4}),
    "qsparse": (QSparseLocalSGD, {"reset_interval": 3, "reset_compressor": TopK(4)}),
    "csea": (CSEA, {"reset_compressor": GRBS(3)}),
    "csea, overlap": (CSEA, {"reset_compressor": GRBS(3), "overlap": True}),
    "csea, delayed": (CSEA, {"reset_compressor": GRBS(3), "reset_delay": 2}),
    "cser I": (CSER, CSER_ARGUMENTS | {"implementation": "I"}),
    "cser I, delayed": (CSER, CSER_ARGUMENTS | {"implementation": "I", "reset_delay": 4}),
    "cser II": (CSER, CSER_ARGUMENTS | {"implementation": "II"}),
    "cser II, delayed and overlap": (CSER, CSER_ARGUMENTS | {"reset_delay": 4, "overlap": True}),
}
Entries = dict[str, Entry]


def values(host: int, *shape: int) -> Tensor:
    """A host's own numbers."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(host), dtype=torch.float64)


def everything(make: Callable[[], Communicator], shape: tuple[int, ...]) -> tuple[dict[str, Tensor], Entries]:
    """One of each operation on a worker's numbers, and the ledger."""
    communicator = make()
    v = values(communicator.rank, *shape)
    first, second = communicator.start_mean(v.clone(), "gradient"), communicator.start_mean(v * 10, "reset")
    x = v.clone()
    communicator.broadcast_([x])
    communicator.check_equal(7, "Numbers")
    found = {
        "later mean": second.wait(),
        "mean": first.wait(),
        "gather": communicator.all_gather(v, "reset"),
        "to all": communicator.all_to_all(v.unsqueeze(-2) * torch.arange(1.0, communicator.size + 1)[:, None], "reset"),
        "bytes": communicator.all_gather(v.view(torch.uint8), "reset"),
        "exchange": communicator.all_to_all(torch.stack([v * j for j in range(communicator.size)], -2), "reset"),
        "total": communicator.total(v, "evaluation"),
        "broadcast": x,
    }
    return found | {"waited twice": first.wait()}, communicator.ledger.entries


@pytest.mark.parametrize("shape", [(1, 6), (1, 7), (1, 1), (3, 1, 5), (1, 0)])
@pytest.mark.parametrize(("hosts", "ranks"), [(2, 2), (2, 3), (3, 1), (1, 2)])
def test_hosts_are_flat_workers(hosts: int, ranks: int, shape: tuple[int, ...]) -> None:
    """Every rank of a host has what its flat worker has, also where ranks do not share a message evenly."""
    flat = run_processes(hosts, partial(everything, Communicator, shape))
    ranks_of_hosts = run_processes(hosts * ranks, partial(everything, partial(HostCommunicator, ranks), shape))
    assert flat[0][0]["gather"].shape == (*shape[:-2], hosts, shape[-1])
    for rank, (found, entries) in enumerate(ranks_of_hosts):
        expected, expected_entries = flat[rank // ranks]
        for name, value in expected.items():
            assert found[name].shape == value.shape, name
            assert torch.allclose(found[name].double(), value.double(), rtol=0, atol=1e-12), name
            assert torch.equal(found[name], ranks_of_hosts[rank // ranks * ranks][0][name]), name
        counted = set(entries) - {"host", "seed-check"}
        assert counted == set(expected_entries) - {"seed-check"}
        assert all(entries[name] == expected_entries[name] for name in counted)
        assert ("host" in entries) == (ranks > 1 and shape[-1] > 0)


def test_worker_ids_are_hosts() -> None:
    """The ranks of a host are the same one worker."""

    def work() -> tuple[int, range, int, int]:
        communicator = HostCommunicator(RANKS)
        return communicator.size, communicator.worker_ids, communicator.rank, communicator.local_rank

    expected = [(2, range(host, host + 1), host, local) for host in range(HOSTS) for local in range(RANKS)]
    assert run_processes(HOSTS * RANKS, work) == expected


def test_gradients_are_averaged_inside_the_host_only() -> None:
    """In place, at what a ring all-reduce among the ranks of the host sends; no total counts it."""

    def work() -> tuple[list[float], Entries, float]:
        communicator = HostCommunicator(RANKS)
        g = torch.full((1, 6), float(dist.get_rank()))
        communicator.average_in_host_(g)
        ledger = communicator.ledger
        return g.flatten().tolist(), ledger.entries, ledger.total(True).bytes + ledger.total(False).bytes

    for rank, found in enumerate(run_processes(HOSTS * RANKS, work)):
        assert found == ([rank // RANKS * 2 + 0.5] * 6, {"host": Entry(24.0, 1)}, 0.0)


def train(name: str, make: Callable[[], Communicator], ranks: int) -> tuple[Tensor, Tensor, Entries]:
    """x after some steps on this rank's part of its worker's batch, the error where one is kept, and the ledger."""
    kind, arguments = METHODS[name]
    model = network()
    communicator = make()
    optimizer = kind(model.parameters(), 0.05, weight_decay=0.1, communicator=communicator, **arguments)
    part = dist.get_rank() % ranks
    for t in range(STEPS):
        generator = torch.Generator().manual_seed(1000 * communicator.rank + t)
        inputs = torch.randn(BATCH, 5, generator=generator, dtype=torch.float64) + communicator.rank
        own = slice(part * BATCH // ranks, (part + 1) * BATCH // ranks)
        optimizer.zero_grad()
        (model(inputs[own]) - communicator.rank).square().mean().backward()
        optimizer.step()
    kept = {key: entry for key, entry in communicator.ledger.entries.items() if key in IN_RATIO}
    return optimizer.x.clone(), optimizer.buffers().get("error", torch.zeros(0)).clone(), kept


@cache
def trained(ranks: int) -> list[dict[str, tuple[Tensor, Tensor, Entries]]]:
    """Of every rank, every method, with so many ranks a host."""
    make = Communicator if ranks == 1 else partial(HostCommunicator, ranks)
    return run_processes(HOSTS * ranks, lambda: {name: train(name, make, ranks) for name in METHODS})


@pytest.mark.parametrize("name", METHODS)
def test_ranks_of_a_host_stay_bitwise_equal(name: str) -> None:
    """Model and error; two hosts do differ, but where all is averaged in the last step."""
    x, error = zip(*(outcome[name][:2] for outcome in trained(RANKS)), strict=True)
    for host in range(HOSTS):
        first, second = host * RANKS, host * RANKS + 1
        assert torch.equal(x[first], x[second])
        assert torch.equal(error[first], error[second])
    assert torch.equal(x[0], x[RANKS]) == (name in ("sgd", "sgd, overlap", "adamw", "local-sgd"))


@pytest.mark.parametrize("name", METHODS)
def test_a_host_is_a_worker_of_a_larger_batch(name: str) -> None:
    """2 hosts of 2 ranks take the steps of 2 flat workers of twice the batch, and send the same bytes in R_C."""
    for rank, outcome in enumerate(trained(RANKS)):
        x, error, entries = outcome[name]
        flat_x, flat_error, flat_entries = trained(1)[rank // RANKS][name]
        assert torch.allclose(x, flat_x, rtol=0, atol=1e-12)
        assert torch.allclose(error, flat_error, rtol=0, atol=1e-12)
        assert entries == flat_entries
        start = nn.utils.parameters_to_vector(network().parameters())
        assert (x[0, : start.numel()] - start).abs().max() > 0.1, "nothing was trained"


def test_an_overflow_on_one_rank_is_the_whole_hosts() -> None:
    """The host's gradient counts as zero, its ranks stay equal, and training goes on."""

    def work() -> tuple[Tensor, Tensor]:
        model = network()
        optimizer = CSEA(model.parameters(), 0.05, 0.0, reset_compressor=GRBS(2), communicator=HostCommunicator(RANKS))
        scaler, before = torch.amp.GradScaler("cpu"), optimizer.x.clone()
        for overflow in (True, False):
            optimizer.zero_grad()
            loss = model(torch.full((1, 5), dist.get_rank() + 1.0, dtype=torch.float64)).square().mean()
            scaler.scale(loss * (float("inf") if overflow and dist.get_rank() == 1 else 1)).backward()
            scaler.step(optimizer)
            scaler.update()
            if overflow:
                moved = optimizer.x - before
        return moved, optimizer.x.clone()

    found = run_processes(HOSTS * RANKS, work)
    unmoved = [float((moved == 0).double().mean()) for moved, _ in found]
    assert unmoved[0] == unmoved[1] > unmoved[2] == unmoved[3]
    for first, second in ((0, 1), (2, 3)):
        assert torch.equal(found[first][1], found[second][1])
        assert found[first][1].isfinite().all()


def test_check_equal_names_the_rank() -> None:
    """Also a rank that disagrees with its own host is found, by all."""

    def work() -> str:
        with pytest.raises(RuntimeError) as caught:
            HostCommunicator(RANKS).check_equal(5 if dist.get_rank() == 3 else 4, "The blocks")
        return str(caught.value)

    for said in run_processes(HOSTS * RANKS, work):
        assert said.startswith("The blocks differ between workers: ranks [3]")


def test_destroyed_groups_are_not_kept_alive() -> None:
    """None of its groups lives on because of it; a gloo group that does aborts its process at the end."""

    def work() -> tuple[list[bool], str]:
        communicator = HostCommunicator(RANKS)
        communicator.mean(torch.ones(1, 4), "gradient")
        groups = [weakref.ref(group) for group in (communicator._host(), communicator._link())]
        for group in groups:
            dist.destroy_process_group(group())
        with pytest.raises(RuntimeError) as caught:
            communicator.mean(torch.ones(1, 4), "gradient")
        return [group() is None for group in groups], str(caught.value)

    for freed, message in run_processes(HOSTS * RANKS, work):
        assert freed == [True, True]
        assert "was destroyed" in message


def test_processes_must_make_whole_hosts() -> None:
    """The error names both numbers."""

    def work() -> str:
        with pytest.raises(ValueError, match="take a divisor of 3") as caught:
            HostCommunicator(2)
        return str(caught.value)

    assert all("3 processes do not make whole hosts of 2" in said for said in run_processes(3, work))


def test_hosts_need_a_process_group() -> None:
    """Virtual workers have no ranks."""
    with pytest.raises(ValueError, match="call init_process_group first"):
        HostCommunicator(2)
