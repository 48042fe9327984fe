"""What the processes of two sharded hosts reduce: the average and its buffers, the ledger's bytes, an overflow."""

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.tensor import DTensor
from torch.nn.functional import mse_loss

from cser_ray.communication.communicator import IN_RATIO
from cser_ray.integrations.workers import keep_average_
from cser_ray.optimizers import LocalSGD
from tests.integrations.fsdp2.hosts import (
    HOSTS,
    SHARDS,
    batch,
    device_mesh,
    largest,
    network,
    rows,
    sharded,
    trained,
    whole,
)
from tests.integrations.wire import counted
from tests.processes import run_processes


def test_the_average_is_evaluated_exported_and_taken_back() -> None:
    """Also where the evaluation leaves parameters gathered, which the next forward pass would take for its own."""

    def work() -> None:
        mesh = device_mesh()
        model, optimizer = trained("cser II", mesh)
        group = mesh["replicate"].get_group()
        own = whole(model)
        mean = []
        for p in own:
            total = p.clone()
            dist.all_reduce(total, group=group)
            mean.append(total / HOSTS)
        assert largest(own, mean) > 1e-3
        inputs = torch.ones(2, 4, dtype=torch.float64)
        plain = network()
        with torch.no_grad():
            before = model(inputs)
            with optimizer.averaged_parameters():
                at_mean = model(inputs)
                everything = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True))
            assert torch.equal(model(inputs), before)
        assert largest(whole(model), own) == 0.0
        kept = optimizer.averaged_state_dict(model)
        assert all(isinstance(value, DTensor) for value in kept.values())
        assert largest([value.full_tensor() for value in kept.values()], mean) < 1e-15
        if dist.get_rank() == 0:  # torch gives a full one to rank 0 of the job
            plain.load_state_dict(everything)
            assert largest([p.detach() for p in plain.parameters()], mean) < 1e-15
            assert (plain(inputs) - at_mean).abs().max() < 1e-12
        keep_average_(model, optimizer)
        assert largest(whole(model), mean) < 1e-15

    run_processes(HOSTS * SHARDS, work, 60)


def test_buffers_of_the_average_are_those_of_all_processes() -> None:
    """BatchNorm's statistics are each process's own, in a host too."""

    def work() -> None:
        mesh = device_mesh()
        torch.manual_seed(0)
        model = sharded(mesh, nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6)))
        optimizer = LocalSGD(model.parameters(), lr=0.1, reset_interval=4)
        for t in range(3):
            torch.manual_seed(10 * t + dist.get_rank())
            model(torch.randn(8, 4)).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
        own = model[1].running_mean.clone()
        mean = own.clone()
        dist.all_reduce(mean)
        with optimizer.averaged_parameters(model):
            assert (model[1].running_mean - mean / 4).abs().max() < 1e-6
        assert torch.equal(model[1].running_mean, own)
        assert (own - mean / 4).abs().max() > 1e-3

    run_processes(HOSTS * SHARDS, work, 60)


def test_the_ledger_is_of_a_process() -> None:
    """Both of a host send equally much, of vectors equally long; nothing but the optimizer reduces between hosts."""

    def work() -> tuple[int, float, float, float]:
        mesh = device_mesh()
        with counted() as sizes:
            _, optimizer = trained("cser II", mesh)
            with optimizer.averaged_parameters():
                pass
        ledger = optimizer.communicator.ledger
        in_ledger = sum(ledger.entries[name].bytes for name in (*IN_RATIO, "evaluation"))
        reduced = sum(size for size in sizes["c10d::allreduce_"] if size > 6 * 8)  # flags of idle parameters
        return optimizer.flat.width, in_ledger, float(reduced), optimizer.communicator.dense_bytes(optimizer.flat.width)

    found = run_processes(HOSTS * SHARDS, work, 60)
    assert len(set(found)) == 1
    assert found[0][1] == found[0][2] > 0
    padded = sum(rows(p, 0).numel() for p in network().parameters() if p.requires_grad)
    assert found[0][0] == padded


def test_an_overflow_in_one_process_is_the_hosts() -> None:
    """GradScaler finds it in one shard; a host that stepped by half would be no model."""

    def work() -> bool:
        mesh = device_mesh()
        model, optimizer = trained("sgd", mesh, steps=1)
        before = optimizer.x.clone()
        loop_part = batch(mesh.get_local_rank("replicate"), slice(None), 1)
        optimizer.zero_grad()
        mse_loss(model(loop_part[0]), loop_part[1]).backward()
        for group in optimizer.param_groups:
            group["momentum"] = 0.0
        optimizer.found_inf = torch.tensor(float(dist.get_rank() in (0, 2)))  # type: ignore[attr-defined]
        optimizer.step()
        return torch.equal(before, optimizer.x)

    assert run_processes(HOSTS * SHARDS, work, 60) == [True] * 4
