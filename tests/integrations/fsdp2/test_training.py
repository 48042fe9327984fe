"""FSDP2 inside a host, 2 hosts of 2 shards: the same training as 2 whole workers, or as plain vectors of the shards."""

import os
import re
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy
from torch.nn.functional import mse_loss

from cser_ray.flat import local
from tests.integrations.fsdp2.hosts import (
    DENSE,
    HOSTS,
    SHARDS,
    SPARSE,
    STEPS,
    batch,
    build,
    device_mesh,
    largest,
    loop,
    network,
    rows,
    sharded,
    trained,
    whole,
)
from tests.processes import run_processes


@pytest.fixture(scope="module")
def of_hosts() -> list[dict[str, list[Tensor]]]:
    """Of each of four processes, what its host's model is after training by each method."""

    def work() -> dict[str, list[Tensor]]:
        warnings.filterwarnings("error", message=".*had no gradient in steps")
        mesh = device_mesh()
        return {name: whole(trained(name, mesh, clip=1.0 if name in DENSE else 0.0)[0]) for name in DENSE | SPARSE}

    return run_processes(HOSTS * SHARDS, work, 120)


@pytest.fixture(scope="module")
def of_workers() -> list[dict[str, list[Tensor]]]:
    """The same of two processes, each a whole worker that reads what the host's two read, for methods that send all."""

    def work() -> dict[str, list[Tensor]]:
        found = {}
        for name in DENSE:
            model = network(dist.get_rank())
            loop(model, build(name, model.parameters()), dist.get_rank(), slice(None), range(STEPS), clip=1.0)
            found[name] = [p.detach().clone() for p in model.parameters()]
        return found

    return run_processes(HOSTS, work, 120)


@pytest.mark.parametrize("name", DENSE)
def test_hosts_train_as_whole_workers_do(
    name: str, of_hosts: list[dict[str, list[Tensor]]], of_workers: list[dict[str, list[Tensor]]]
) -> None:
    """With frozen layers, gradients clipped by the host's norm, and cleared to zero and to None."""
    for rank, found in enumerate(of_hosts):
        assert largest(found[name], of_workers[rank // SHARDS][name]) < 1e-12
    assert largest(of_hosts[0][name], [p.detach() for p in network().parameters()]) > 0.01


@pytest.fixture(scope="module")
def of_vectors() -> list[dict[str, list[Tensor]]]:
    """Two processes that keep a plain optimizer for the vector of each shard, and compute gradients of the whole."""

    def work() -> dict[str, list[Tensor]]:
        host, found = dist.get_rank(), {}
        for name in SPARSE:
            model = network(host)
            params = [p for p in model.parameters() if p.requires_grad]
            shards = [[nn.Parameter(rows(p.detach(), shard)) for p in params] for shard in range(SHARDS)]
            optimizers = [build(name, shard) for shard in shards]
            with torch.no_grad():
                frozen = [p for p in model.parameters() if not p.requires_grad]
                for p, q in zip(frozen, [q for q in network(0).parameters() if not q.requires_grad], strict=True):
                    p.copy_(q)  # an optimizer that has them sends worker 0's
            for t in range(STEPS):
                with torch.no_grad():
                    for number, p in enumerate(params):
                        p.copy_(torch.cat([shard[number] for shard in shards])[: len(p)])
                inputs, targets = batch(host, slice(None), t)
                gradients = torch.autograd.grad(mse_loss(model(inputs), targets), params)
                for shard, optimizer in enumerate(optimizers):
                    for p, g in zip(shards[shard], gradients, strict=True):
                        p.grad = rows(g, shard)
                    optimizer.step()
            ends = iter([torch.cat(parts)[: len(p)].detach() for p, *parts in zip(params, *shards, strict=True)])
            found[name] = [next(ends) if p.requires_grad else p.detach() for p in model.parameters()]
        return found

    return run_processes(HOSTS, work, 120)


@pytest.mark.parametrize("name", SPARSE)
def test_a_process_runs_the_method_on_the_vector_of_its_shards(
    name: str, of_hosts: list[dict[str, list[Tensor]]], of_vectors: list[dict[str, list[Tensor]]]
) -> None:
    """Padded shards, side by side: blocks, errors, momentum and resets under way are those of that vector."""
    for rank, found in enumerate(of_hosts):
        assert largest(found[name], of_vectors[rank // SHARDS][name]) < 1e-12
    if name != "ef-sgd":
        assert largest(of_hosts[0][name], of_hosts[2][name]) > 1e-6, "hosts should differ"


def test_one_process_a_host_is_a_plain_worker() -> None:
    """A mesh of 2 x 1: nothing is divided, and nothing is different."""

    def work() -> float:
        host = dist.get_rank()
        mesh = init_device_mesh("cpu", (HOSTS, 1), mesh_dim_names=("replicate", "shard"))
        model, plain = sharded(mesh), network(host)
        for one in (model, plain):
            loop(one, build("cser II", one.parameters()), host, slice(None), range(STEPS), 0.0)
        return largest(whole(model), [p.detach() for p in plain.parameters()])

    assert run_processes(HOSTS, work, 60) == [0.0, 0.0]


def test_fsdp_gathers_from_the_flat_vector_itself() -> None:
    """No second copy of the shards: what is written to x is what the next forward pass computes with."""

    def work() -> None:
        mesh = device_mesh()
        model, optimizer = trained("cser II", mesh)
        with torch.no_grad():
            optimizer.x.zero_()
            optimizer.guard.written()
            assert not model(torch.ones(2, 4, dtype=torch.float64)).any()
            for p in optimizer.flat.parameters:
                if local(p).numel():
                    assert optimizer.x.data_ptr() <= local(p).data_ptr() < optimizer.x.data_ptr() + optimizer.x.nbytes

    run_processes(HOSTS * SHARDS, work, 60)


def test_shards_stay_in_32_bits_where_16_are_computed_with() -> None:
    """MixedPrecisionPolicy: gathered in bfloat16, and trained close to what 32 bits give."""

    def work() -> tuple[torch.dtype, float]:
        mesh = device_mesh()
        ends = []
        for policy in ({}, {"mp_policy": MixedPrecisionPolicy(param_dtype=torch.bfloat16)}):
            model = sharded(mesh, network(mesh.get_local_rank("replicate")).float(), **policy)
            optimizer = build("cser II", model.parameters())
            for t in range(STEPS):
                inputs, targets = batch(0, slice(dist.get_rank(), None, 4), t)
                optimizer.zero_grad()
                (model(inputs.float()).float() - targets.float()).square().mean().backward()
                optimizer.step()
            ends.append(optimizer.x)
        return ends[1].dtype, float((ends[0] - ends[1]).abs().max())

    for dtype, apart in run_processes(HOSTS * SHARDS, work, 60):
        assert dtype == torch.float32
        assert 0 < apart < 0.05


def test_the_example_trains_two_hosts() -> None:
    """Started by torchrun, rank 0 says so in the last line."""
    example = Path(__file__).parents[3] / "examples" / "fsdp2.py"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "4", str(example)]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=300, env=os.environ | {"OMP_NUM_THREADS": "1"}, check=False
    )
    assert done.returncode == 0, done.stderr
    assert re.search(
        r"^2 hosts of 2, \d+ steps, [\d.]+ MB sent by each process: accuracy 0\.[89]\d+$", done.stdout, re.M
    ), done.stdout
