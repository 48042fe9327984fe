"""Each worker's file and the manifest: at whatever moment processes are killed, the last whole save is what is loaded."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from cser_ray import CSER, load_worker, save_workers
from tests.integrations.workers import ARGUMENTS, DEATH, die, network
from tests.processes import run_processes


class Fatal:
    """A state whose worker is killed while it is being written."""

    def __reduce__(self) -> Any:
        die()


def worker() -> tuple[torch.nn.Module, CSER]:
    """A model and its optimizer after a step of this rank's own."""
    model = network(dist.get_rank())
    optimizer = CSER(model.parameters(), **ARGUMENTS)
    model(torch.ones(2, 4) + dist.get_rank()).square().sum().backward()
    optimizer.step()
    return model, optimizer


def folder_of(path: Path, shared: bool) -> Path:
    """The folder that this rank's process reads and writes."""
    return path if shared else path / f"disk-{dist.get_rank()}"


def saved(path: Path, shared: bool, name: str, then: object = None) -> Callable[[], None]:
    """Saves under a name, twice, each a step further; the second time with something more on rank 1."""

    def work() -> None:
        model, optimizer = worker()
        save_workers(folder_of(path, shared), model, optimizer, {"name": name, "x": optimizer.x.clone()})
        optimizer.step()
        more = {"then": then} if then is not None and dist.get_rank() == 1 else {}
        save_workers(
            folder_of(path, shared), model, optimizer, {"name": f"{name} later", "x": optimizer.x.clone(), **more}
        )

    return work


def loaded(path: Path, shared: bool) -> Callable[[], tuple[str, bool]]:
    """The name of the save that a rank finds there, and whether its model is that rank's own."""

    def work() -> tuple[str, bool]:
        model, optimizer = worker()
        state = load_worker(folder_of(path, shared), model, optimizer)
        return state["name"], torch.equal(optimizer.x, state["x"])

    return work


shared_or_not = pytest.mark.parametrize("shared", [True, False], ids=["one disk", "a disk each"])


@shared_or_not
def test_a_save_takes_the_place_of_the_earlier_one(tmp_path: Path, shared: bool) -> None:
    """In the same folder, which then holds no more files than before."""
    run_processes(2, saved(tmp_path, shared, "first"), 60)
    assert run_processes(2, loaded(tmp_path, shared), 60) == [("first later", True)] * 2
    names = {path.name for path in tmp_path.rglob("*") if path.is_file()}
    assert names == {"cser_ray.json", "cser_ray_rank0.pt", "cser_ray_rank1.pt"}


@shared_or_not
def test_a_death_while_writing_leaves_the_earlier_save(tmp_path: Path, shared: bool) -> None:
    """On every rank, also on the one that had written; and a later save succeeds."""
    with pytest.raises(RuntimeError, match=DEATH):
        run_processes(2, saved(tmp_path, shared, "first", then=Fatal()), 60)
    assert run_processes(2, loaded(tmp_path, shared), 60) == [("first", True)] * 2
    run_processes(2, saved(tmp_path, shared, "second"), 60)
    assert run_processes(2, loaded(tmp_path, shared), 60) == [("second later", True)] * 2


@pytest.mark.parametrize(
    ("told", "renamed"), [("nobody", False), ("rank 0", False), ("all", False), ("all", True)]
)  # a file gets its name only when all have the manifest
def test_a_death_between_manifests_and_names_leaves_a_whole_save(tmp_path: Path, told: str, renamed: bool) -> None:
    """All have written; some may have the new manifest, or, where all have, their files the final name."""
    before, after = tmp_path / "before", tmp_path / "after"
    with pytest.raises(RuntimeError, match=DEATH):
        run_processes(2, saved(before, False, "first", then=Fatal()), 60)
    run_processes(2, saved(after, False, "second"), 60)
    for rank in range(2):  # what the disks would hold: the earlier save, and of the later one this much
        old, new = before / f"disk-{rank}", after / f"disk-{rank}"
        file = f"cser_ray_rank{rank}.pt"
        is_renamed = renamed and rank == 0
        (new / file).rename(old / (file if is_renamed else f"{file}.next"))
        if told == "all" or (told == "rank 0" and rank == 0):
            (new / "cser_ray.json").rename(old / "cser_ray.json")
    expected = "second later" if told == "all" else "first"
    assert run_processes(2, loaded(before, False), 60) == [(expected, True)] * 2


def test_where_nothing_is_saved_yet_the_default_is_given(tmp_path: Path) -> None:
    """Also after a death in the first save of all. What some ranks have and others have lost is an error on all."""

    def with_default() -> dict[str, Any]:
        return load_worker(folder_of(tmp_path, False), *worker(), default={"epoch": 0})

    assert run_processes(2, with_default, 60) == [{"epoch": 0}] * 2

    def dies() -> None:
        state = {"fatal": Fatal()} if dist.get_rank() == 1 else {}
        save_workers(folder_of(tmp_path, False), *worker(), state)

    with pytest.raises(RuntimeError, match=DEATH):
        run_processes(2, dies, 60)
    assert run_processes(2, with_default, 60) == [{"epoch": 0}] * 2

    run_processes(2, saved(tmp_path, False, "first"), 60)
    (tmp_path / "disk-1" / "cser_ray.json").unlink()
    with pytest.raises(ValueError, match="no whole checkpoint"):
        run_processes(2, with_default, 60)


def test_a_checkpoint_without_the_name_of_its_save_is_read(tmp_path: Path) -> None:
    """As versions before this one wrote it."""
    run_processes(2, saved(tmp_path, True, "first"), 60)
    manifest = json.loads((tmp_path / "cser_ray.json").read_text())
    del manifest["save"]
    (tmp_path / "cser_ray.json").write_text(json.dumps(manifest))
    for file in tmp_path.glob("*.pt"):
        content = torch.load(file)
        del content["save"]
        torch.save(content, file)
    assert run_processes(2, loaded(tmp_path, True), 60) == [("first later", True)] * 2
