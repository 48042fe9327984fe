"""Every process of two sharded hosts is saved and resumed: by us, by torch's checkpoints, in a file of one's own."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

from cser_ray.communication.communicator import IN_RATIO
from cser_ray.flat import local
from cser_ray.integrations.workers import load_worker, save_workers
from tests.integrations.fsdp2.hosts import (
    HOSTS,
    SHARDS,
    STEPS,
    build,
    device_mesh,
    loop,
    network,
    refused,
    sharded,
    trained,
)
from tests.integrations.workers import DEATH, alike, die
from tests.processes import run_processes


def resumable(folder: Path, resume: bool = False, dies: bool = False) -> Callable[[], Any]:
    """A user's loop that saves after step 7, when resets are under way, and may be killed in step 10 by one process."""

    def work() -> list[Any]:
        mesh = device_mesh()
        host, part = mesh.get_local_rank("replicate"), slice(mesh.get_local_rank("shard"), None, SHARDS)
        ends = []
        for name in ("cser II, delayed", "cser I", "cser, two ways", "diloco"):
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
        for name in ("cser II", "cser I", "cser, two ways", "diloco"):
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
