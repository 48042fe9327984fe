"""FSDP2 inside a host, 2 hosts of 2 shards: the same training as 2 whole workers, and every process is saved and resumed."""

import contextlib
import io
import os
import re
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_state_dict,
    set_state_dict,
)
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Shard, distribute_tensor
from torch.nn.functional import mse_loss

from cser_ray import CSER, GRBS
from cser_ray.communication.communicator import IN_RATIO, Communicator
from cser_ray.communication.host_communicator import HostCommunicator
from cser_ray.compressors import TopK
from cser_ray.flat import local
from cser_ray.integrations.workers import keep_average_, load_worker, save_workers
from cser_ray.optimizers import CSERPL, EFSGD, SGD, CSERRelease, DiLoCo, FlatOptimizer, LocalSGD, QSparseLocalSGD
from tests.integrations.wire import counted
from tests.integrations.workers import DEATH, alike, die
from tests.processes import run_processes

HOSTS, SHARDS, STEPS, BATCH = 2, 2, 13, 4
BOTH = {"reset_interval": 3, "reset_compressor": GRBS(2), "gradient_compressor": GRBS(3)}
ADAMW = {"betas": (0.8, 0.9), "weight_decay": 0.1}
DENSE: dict[str, tuple[Callable[..., FlatOptimizer], dict[str, Any]]] = {
    "sgd": (SGD, {}),
    "local-sgd": (LocalSGD, {"reset_interval": 4}),
    "local-sgd, AdamW": (LocalSGD, {"reset_interval": 4} | ADAMW),
    "diloco": (DiLoCo, {"reset_interval": 4, "outer_lr": 0.7, "outer_momentum": 0.9} | ADAMW),
}
"""Methods that send all of a vector: how it is cut into shards does not show."""
SPARSE: dict[str, tuple[Callable[..., FlatOptimizer], dict[str, Any]]] = {
    "cser I": (CSER, BOTH | {"implementation": "I"}),
    "cser II": (CSER, BOTH),
    "cser II, delayed": (CSER, BOTH | {"reset_delay": 4}),
    "cser, AdamW": (CSER, BOTH | ADAMW),
    "cser, top-k": (CSER, BOTH | {"reset_compressor": TopK(4)}),
    "cser-pl": (CSERPL, {"reset_interval": 3, "reset_compressor": GRBS(2)}),
    "cser-release": (CSERRelease, BOTH),
    "qsparse": (QSparseLocalSGD, {"reset_interval": 3, "reset_compressor": GRBS(2)}),
    "ef-sgd": (EFSGD, {"gradient_compressor": GRBS(4)}),
}
"""Methods that choose a part of it, each process of its own vector."""


def network(host: int = 0) -> nn.Sequential:
    """Shards of unequal lengths, empty ones, and a layer that is not trained; other values on other hosts."""
    torch.manual_seed(host)
    model = nn.Sequential(nn.Linear(4, 7), nn.Tanh(), nn.Linear(7, 5), nn.Tanh(), nn.Linear(5, 1)).double()
    model[2].requires_grad_(False)
    return model


def device_mesh() -> DeviceMesh:
    return init_device_mesh("cpu", (HOSTS, SHARDS), mesh_dim_names=("replicate", "shard"))


def sharded(mesh: DeviceMesh, model: nn.Module | None = None, **further: Any) -> nn.Module:
    """The network as a host has it: the first layer gathered apart, the others with the whole."""
    model = network(mesh.get_local_rank("replicate")) if model is None else model
    fully_shard(model.get_submodule("0"), mesh=mesh["shard"], **further)
    fully_shard(model, mesh=mesh["shard"], **further)
    return model


def batch(host: int, part: slice, t: int) -> tuple[Tensor, Tensor]:
    """Part of what a host reads in step t."""
    generator = torch.Generator().manual_seed(100 * t + host)
    numbers = torch.randn(SHARDS * BATCH, 5, generator=generator, dtype=torch.float64)[part]
    return numbers[:, :4], numbers[:, 4:] + host


def loop(model: nn.Module, optimizer: FlatOptimizer, host: int, part: slice, steps: range, clip: float) -> None:
    """As a user writes it, with gradients cleared either way."""
    for t in steps:
        optimizer.zero_grad(set_to_none=t % 3 == 0)
        inputs, targets = batch(host, part, t)
        mse_loss(model(inputs), targets).backward()
        if clip:
            nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()


def build(name: str, parameters: Any) -> FlatOptimizer:
    kind, arguments = (DENSE | SPARSE)[name]
    return kind(parameters, lr=0.05, **arguments)


def trained(
    name: str, mesh: DeviceMesh, steps: int = STEPS, clip: float = 0.0, **further: Any
) -> tuple[Any, FlatOptimizer]:
    """A sharded model and its optimizer after some steps."""
    model = sharded(mesh, **further)
    optimizer = build(name, model.parameters())
    part = slice(mesh.get_local_rank("shard"), None, SHARDS)
    loop(model, optimizer, mesh.get_local_rank("replicate"), part, range(steps), clip)
    return model, optimizer


def whole(model: nn.Module) -> list[Tensor]:
    """A host's parameters, put together from its shards."""
    model.reshard()  # type: ignore[operator]  # an evaluation may have left some gathered
    return [p.full_tensor().detach() for p in model.parameters()]  # type: ignore[attr-defined]


def largest(one: list[Tensor], other: list[Tensor]) -> float:
    """The largest difference of two lists of tensors."""
    return max(float((a - b).abs().max()) for a, b in zip(one, other, strict=True))


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


def rows(p: Tensor, shard: int) -> Tensor:
    """A shard of a tensor, padded as FSDP does."""
    length = -(-len(p) // SHARDS)
    padded = p.new_zeros(length * SHARDS, *p.shape[1:])
    padded[: len(p)] = p
    return padded[shard * length : (shard + 1) * length].clone()


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


def resumable(folder: Path, resume: bool = False, dies: bool = False) -> Callable[[], Any]:
    """A user's loop that saves after step 7, when resets are under way, and may be killed in step 10 by one process."""

    def work() -> list[Any]:
        mesh = device_mesh()
        host, part = mesh.get_local_rank("replicate"), slice(mesh.get_local_rank("shard"), None, SHARDS)
        ends = []
        for name in ("cser II, delayed", "cser I", "diloco"):
            place = folder / name
            model = sharded(mesh)
            optimizer = build(name, model.parameters())
            first = 0
            if resume:
                first = load_worker(place, model, optimizer)["t"]
                assert first == 7
            for t in range(first, STEPS):
                loop(model, optimizer, host, part, range(t, t + 1), 0.0)
                if t + 1 == 7 and not resume:
                    save_workers(place, model, optimizer, {"t": t + 1})
                if t == 10 and dies and name == "diloco" and dist.get_rank() == 3:
                    die()
            state = [{k: local(v) for k, v in values.items()} for values in optimizer.state.values()]
            ledger = optimizer.communicator.ledger
            ends.append((optimizer.x.clone(), state, {k: ledger.entries.get(k) for k in IN_RATIO}))
        return ends

    return work


def test_a_killed_run_goes_on_bit_for_bit(tmp_path: Path) -> None:
    """Every process has its own shard's state back, of its own host, from a file of its own."""
    first = run_processes(HOSTS * SHARDS, resumable(tmp_path / "whole"), 120)
    with pytest.raises(RuntimeError, match=DEATH):
        run_processes(HOSTS * SHARDS, resumable(tmp_path / "killed", dies=True), 120)
    again = run_processes(HOSTS * SHARDS, resumable(tmp_path / "killed", resume=True), 120)
    assert alike(first, again)
    assert len({end[0][0].numpy().tobytes() for end in first}) == HOSTS * SHARDS

    def fewer() -> None:
        model = network(dist.get_rank())
        with pytest.raises(ValueError, match=r"a checkpoint of 2 workers of 2 shards, here are 2 workers: resume with"):
            load_worker(tmp_path / "whole" / "diloco", model, build("diloco", model.parameters()))

    run_processes(HOSTS, fewer, 60)


def test_torchs_distributed_checkpoint_of_each_host(tmp_path: Path) -> None:
    """A host saves into a folder of its own, by the group of its processes: common models and digests are sharded too."""

    def work() -> None:
        mesh = device_mesh()
        host, part = mesh.get_local_rank("replicate"), slice(mesh.get_local_rank("shard"), None, SHARDS)
        for name in ("cser II", "cser I", "diloco"):
            place = str(tmp_path / name / f"host{host}")
            model, optimizer = trained(name, mesh, steps=7)
            saved = dict(zip(("model", "optimizer"), get_state_dict(model, optimizer), strict=True))
            dcp.save(saved, checkpoint_id=place, process_group=mesh["shard"].get_group())
            again = sharded(mesh)
            resumed = build(name, again.parameters())
            found = dict(zip(("model", "optimizer"), get_state_dict(again, resumed), strict=True))
            dcp.load(found, checkpoint_id=place, process_group=mesh["shard"].get_group())
            set_state_dict(again, resumed, model_state_dict=found["model"], optim_state_dict=found["optimizer"])
            for one, its in ((model, optimizer), (again, resumed)):
                loop(one, its, host, part, range(7, STEPS), 0.0)
            assert resumed.t == STEPS
            assert torch.equal(resumed.x, optimizer.x)

    run_processes(HOSTS * SHARDS, work, 120)


def test_resets_under_way_are_not_lost_without_a_word(tmp_path: Path) -> None:
    """torch's distributed checkpoint loads into what is there, and a new optimizer has none under way."""

    def work() -> None:
        mesh = device_mesh()
        place, group = str(tmp_path / f"host{mesh.get_local_rank('replicate')}"), mesh["shard"].get_group()
        model, optimizer = trained("cser II, delayed", mesh, steps=7)
        assert optimizer.state_dict()["cser_ray"]["in_flight"]
        saved = dict(zip(("model", "optimizer"), get_state_dict(model, optimizer), strict=True))
        dcp.save(saved, checkpoint_id=place, process_group=group)
        again = sharded(mesh)
        resumed = build("cser II, delayed", again.parameters())
        found = dict(zip(("model", "optimizer"), get_state_dict(again, resumed), strict=True))
        dcp.load(found, checkpoint_id=place, process_group=group)
        with refused(r"saved with 1 resets under way and holds 0.*or by cser_ray.integrations.workers.save_workers"):
            set_state_dict(again, resumed, model_state_dict=found["model"], optim_state_dict=found["optimizer"])

    run_processes(HOSTS * SHARDS, work, 60)


def test_a_state_dict_in_a_file_of_ones_own() -> None:
    """torch.save and torch.load(weights_only=True), a file a process."""

    def work() -> None:
        mesh = device_mesh()
        host, part = mesh.get_local_rank("replicate"), slice(mesh.get_local_rank("shard"), None, SHARDS)
        model, optimizer = trained("cser I", mesh, steps=7)
        file = io.BytesIO()
        torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, file)
        file.seek(0)
        saved = torch.load(file, weights_only=True)
        again = sharded(mesh)
        resumed = build("cser I", again.parameters())
        again.load_state_dict(saved["model"])
        resumed.load_state_dict(saved["optimizer"])
        for one, its in ((model, optimizer), (again, resumed)):
            loop(one, its, host, part, range(7, STEPS), 0.0)
        assert torch.equal(resumed.x, optimizer.x)

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


@contextlib.contextmanager
def refused(words: str) -> Iterator[None]:
    with pytest.raises((ValueError, RuntimeError), match=words):
        yield


def test_what_cannot_be_right_is_refused() -> None:
    """In a sentence with the way out, on every process."""

    def work() -> None:
        mesh = device_mesh()
        inside = mesh["shard"]
        with refused(
            r'averages gradients over all of it densely \(HSDP\).*fully_shard\(module, mesh=mesh\["shard"\]\)'
        ):
            cser(fully_shard(network(), mesh=mesh))
        with refused(
            r"sharded over 4 processes, and its device mesh has no dimension beside them.*Shard it inside a host"
        ):
            cser(fully_shard(network(), mesh=init_device_mesh("cpu", (4,), mesh_dim_names=("all",))))
        with refused(r"joins ranks \[\d, \d\], which hold different shards of one model"):
            cser(sharded(mesh), communicator=Communicator())
        with refused(r"are not all 4 processes: other ways to divide a model"):
            cser(sharded(mesh), communicator=Communicator(group=None))
        with refused(r"FSDP has averaged the gradients inside the host already. Leave the HostCommunicator out"):
            cser(sharded(mesh), communicator=HostCommunicator(ranks_per_host=2))
        with refused(r"`overlap` sends a gradient when autograd has made it"):
            cser(sharded(mesh), overlap=True)
        with refused(r"Muon makes its updates of whole matrices"):
            cser(sharded(mesh), inner="muon")
        with refused(r"6 of 7 parameters are shards, and the others whole"):
            CSER([*sharded(mesh).parameters(), nn.Parameter(torch.ones(2))], 0.1)
        with refused(r"CPUOffloadPolicy, which is not supported"):
            cser(sharded(mesh, offload_policy=CPUOffloadPolicy(pin_memory=False)))
        with refused(r"is a DTensor that fully_shard has not made"):
            CSER([nn.Parameter(distribute_tensor(torch.ones(4), inside, [Shard(0)]))], 0.1)
        tensor_parallel = distribute_tensor(torch.ones(4, 4), mesh, [Shard(0), Shard(1)])
        with refused(r"divided along more than FSDP's one dimension, as tensor parallelism does"):
            CSER([nn.Parameter(tensor_parallel)], 0.1)
        with torch.device("meta"):
            nowhere = nn.Sequential(nn.Linear(4, 4))
        with refused(r"have no memory yet: call module.to_empty\(\)"):
            cser(fully_shard(nowhere, mesh=inside))
        model = sharded(mesh)
        model(torch.ones(2, 4, dtype=torch.float64))
        with torch.no_grad():
            model.unshard()
        with refused(r"are gathered for a forward pass|are shards, and the others whole"):
            cser(model)
        model.reshard()
        optimizer = cser(model)
        model.float()
        with refused(r"got other storage after the optimizer was built"):
            optimizer.step()

    run_processes(HOSTS * SHARDS, work, 120)


def cser(model: nn.Module, **further: Any) -> CSER:
    return CSER(model.parameters(), 0.1, **BOTH, **further)


def test_hosts_that_are_divided_otherwise_are_refused() -> None:
    """The processes that average with each other must hold the same shards."""

    def work() -> None:
        mesh = device_mesh()
        crossed = [dist.new_group([0, 3]), dist.new_group([1, 2])]
        mine = crossed[dist.get_rank() in (1, 2)]
        with refused(
            r"differ in the parameters, number 0: .*shard [01] of 2.* on rank 1, .*shard [01] of 2.* on rank 0"
        ):
            cser(sharded(mesh), communicator=Communicator(group=mine))

    run_processes(HOSTS * SHARDS, work, 60)


def test_the_example_trains_two_hosts() -> None:
    """Started by torchrun, rank 0 says so in the last line."""
    example = Path(__file__).parents[2] / "examples" / "fsdp2.py"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "4", str(example)]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=300, env=os.environ | {"OMP_NUM_THREADS": "1"}, check=False
    )
    assert done.returncode == 0, done.stderr
    assert re.search(
        r"^2 hosts of 2, \d+ steps, [\d.]+ MB sent by each process: accuracy 0\.[89]\d+$", done.stdout, re.M
    ), done.stdout
