"""A trial that goes on from a checkpoint ends with the bits of one that was never disturbed."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from cser_ray.communication.communicator import Communicator
from cser_ray.communication.host_communicator import HostCommunicator
from cser_ray.config import RunConfig
from cser_ray.errors import CserWarning
from cser_ray.store.checkpoint import CheckpointStore
from cser_ray.store.read import EpochRow, RunRow
from cser_ray.train import build
from cser_ray.train.checkpoints import Checkpoints
from cser_ray.train.loop import train
from cser_ray.train.record import Record, TrialIdentity
from cser_ray.train.stack import Stack
from tests.processes import run_processes
from tests.train.points import CPU, POINTS, N, config

STOP = 7
"""Inside an interval of every method here, whose H is 2 or 4, and with a delayed reset under way."""
STEPS = 12
CLOCKS = {"wall_s", "compute_s", "comm_s", "started_at", "heartbeat_at", "ended_at"}
IDENTITY = TrialIdentity("study", "trial")


def state(stack: Stack) -> dict[str, Tensor]:
    """All that a trial holds, as integers: equal bits are equal, also NaN."""
    optimizer = stack.optimizer
    tensors = {"x": optimizer.x} | optimizer.buffers() | optimizer.common_buffers() | stack.workers.buffers
    tensors |= {f"generator {k}": g.get_state() for k, g in enumerate(stack.generators)}
    return {name: tensor.clone().view(torch.uint8) for name, tensor in tensors.items()}


def rows_of(record: Record) -> list[dict[str, Any]]:
    """The rows of the last evaluation but for clocks."""
    return [
        {name: value for name, value in vars(row).items() if name not in CLOCKS}
        for row in (*record.epoch_rows, *record.run_rows)
    ]


def begin(configs: Sequence[RunConfig], communicator: Communicator | None = None) -> tuple[Stack, Record]:
    """A new trial and its record."""
    stack = Stack(configs, communicator or Communicator(configs[0].workers, group=None), CPU)
    return stack, Record(stack, IDENTITY)


def go(stack: Stack, record: Record, steps: int) -> None:
    """Train up to step number `steps` and evaluate."""
    while stack.t < steps:
        stack.step()
    record.evaluate(last=steps == STEPS)


def assert_same_end(a: tuple[Stack, Record], b: tuple[Stack, Record]) -> None:
    """Bits, bytes and rows agree."""
    first, second = state(a[0]), state(b[0])
    assert first.keys() == second.keys()
    assert [name for name in first if not torch.equal(first[name], second[name])] == []
    assert a[0].communicator.ledger == b[0].communicator.ledger
    assert repr(rows_of(a[1])) == repr(rows_of(b[1]))  # NaN is like NaN


def continued(
    configs: Sequence[RunConfig], folder: str, communicator: Callable[[], Communicator] | None = None
) -> tuple[tuple[Stack, Record], tuple[Stack, Record]]:
    """The end of an undisturbed trial that saved at STOP, and of another that went on from there."""
    whole = begin(configs, communicator and communicator())
    go(*whole, STOP)
    Checkpoints(folder, "trial", 0).save(*whole)
    go(*whole, STEPS)
    again = begin(configs, communicator and communicator())
    Checkpoints(folder, "trial", 0).restore(*again)
    assert again[0].t == STOP
    go(*again, STEPS)
    return whole, again


def stacked(method: str, **values: Any) -> list[RunConfig]:
    """Two runs that differ in learning rate and repeat."""
    first = config(method, **values)
    return [first, dataclasses.replace(first, lr=0.05, repeat=1)]


@pytest.mark.parametrize("method", POINTS)
def test_every_method_goes_on_with_the_same_bits(method: str, tmp_path: Path) -> None:
    """Models, optimizer, BatchNorm, ledger and rows of two stacked runs, stopped inside an interval."""
    assert_same_end(*continued(stacked(method), str(tmp_path)))


@pytest.mark.parametrize("order", ["permuted", "cyclic"])
def test_block_orders_go_on(order: str, tmp_path: Path) -> None:
    """Which block comes next is a function of the step."""
    assert_same_end(*continued(stacked("cser", block_order=order), str(tmp_path)))


@pytest.mark.parametrize("implementation", ["I", "II"])
def test_resets_under_way_arrive(implementation: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two of them are on their way when the trial is stopped."""
    arguments = build.own_arguments
    delayed = {"reset_delay": 4, "implementation": implementation}
    monkeypatch.setattr(build, "own_arguments", lambda c, d=None: arguments(c, d) | delayed)
    stack, record = begin(stacked("cser"))
    go(stack, record, STOP)
    assert len(stack.optimizer.extra_state()["in_flight"]) == 2
    assert_same_end(*continued(stacked("cser"), str(tmp_path)))


def test_dropout_goes_on(tmp_path: Path) -> None:
    """The masks after the restart are those that would have come."""
    task = "tests.train.dropping:DroppingDigits"
    whole, again = continued(stacked("csea", task=task), str(tmp_path))
    assert_same_end(whole, again)
    other = begin(stacked("csea", task=task))
    Checkpoints(str(tmp_path), "trial").restore(*other)
    other[0].workers.step.zero_()
    go(*other, STEPS)
    assert not torch.equal(other[0].optimizer.x, again[0].optimizer.x)


def test_a_module_with_random_numbers_of_its_own_goes_on(tmp_path: Path) -> None:
    """Each row's generator runs on from where it stood."""
    assert_same_end(*continued(stacked("csea", task="tests.train.dropping:NoisyDigits"), str(tmp_path)))


@pytest.mark.parametrize("way", ["loop", "vmap", "record"])
def test_every_way_of_virtual_workers_goes_on(way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A record, which is made anew after the restart, reads the state that was put back."""
    monkeypatch.setenv("CSER_RAY_VIRTUAL", way)
    assert_same_end(*continued(stacked("cser", task="tests.train.dropping:DroppingDigits"), str(tmp_path)))


@pytest.mark.parametrize("method", ["sgd", "cser", "qsparse"])
def test_two_processes_go_on_with_the_same_bits(method: str, tmp_path: Path) -> None:
    """Each has a file of its own; the ledger knows nothing of it."""
    configs = stacked(method, workers=2)
    Stack(configs, Communicator(2, group=None), CPU)  # reads the data here rather than in every process

    def both() -> None:
        assert_same_end(*continued(configs, str(tmp_path), Communicator))

    run_processes(2, both)
    files = sorted(path.name for path in tmp_path.glob(f"checkpoints/trial/step-{STOP:08d}/*"))
    assert files == ["common.safetensors", "manifest.json", "rank-0.safetensors", "rank-1.safetensors"]


def test_hosts_of_two_processes_go_on_with_the_same_bits(tmp_path: Path) -> None:
    """The processes of a worker share its model, and each has its own BatchNorm statistics."""
    configs = stacked("cser", workers=2, processes_per_worker=2)
    Stack([dataclasses.replace(c, processes_per_worker=1) for c in configs], Communicator(2, group=None), CPU)

    def each() -> None:
        assert_same_end(*continued(configs, str(tmp_path), lambda: HostCommunicator(2)))

    run_processes(4, each)


def saved(folder: Path, *steps: int, method: str = "cser") -> None:
    """A trial that was saved after each of these steps."""
    stack, record = begin(stacked(method))
    for step in steps:
        go(stack, record, step)
        Checkpoints(str(folder), "trial", 0).save(stack, record)


def step_after_restore(folder: Path, method: str = "cser", **values: Any) -> int:
    """Where a new trial goes on."""
    stack, record = begin(stacked(method, **values))
    Checkpoints(str(folder), "trial").restore(stack, record)
    return stack.t


def test_the_last_two_checkpoints_are_kept(tmp_path: Path) -> None:
    """Older ones are removed with all their files."""
    saved(tmp_path, 2, 3, 5, 7)
    assert [path.name for path in sorted(tmp_path.glob("checkpoints/trial/*"))] == ["step-00000005", "step-00000007"]
    assert step_after_restore(tmp_path) == 7


@pytest.mark.parametrize("file", ["common.safetensors", "rank-0.safetensors", "manifest.json"])
@pytest.mark.parametrize("damage", ["cut", "flipped", "empty"])
def test_a_damaged_checkpoint_falls_back_to_the_one_before(file: str, damage: str, tmp_path: Path) -> None:
    """It is named, whichever file is damaged and however."""
    saved(tmp_path, 3, 7)
    path = tmp_path / "checkpoints/trial/step-00000007" / file
    data = bytearray(path.read_bytes())
    if damage == "flipped":
        data[len(data) // 2] ^= 1
    path.write_bytes(data if damage == "flipped" else data[: len(data) // 2 if damage == "cut" else 0])
    stack, record = begin(stacked("cser"))
    with pytest.warns(CserWarning, match=f"step-00000007/{file}"):
        Checkpoints(str(tmp_path), "trial").restore(stack, record)
    assert stack.t == 3
    go(stack, record, 5)
    assert record.run_rows[0].note == "left out the damaged checkpoint of step 7"


def test_a_checkpoint_without_a_manifest_does_not_exist(tmp_path: Path) -> None:
    """A process killed while it wrote leaves no reason for a warning, and its files go with the next save."""
    saved(tmp_path, 3, 7)
    (tmp_path / "checkpoints/trial/step-00000007/manifest.json").unlink()
    assert step_after_restore(tmp_path) == 3
    saved(tmp_path, 3, 8)
    assert [path.name for path in sorted(tmp_path.glob("checkpoints/trial/*"))] == ["step-00000003", "step-00000008"]


def test_every_checkpoint_damaged_begins_anew(tmp_path: Path) -> None:
    """With a word on each."""
    saved(tmp_path, 3, 7)
    for path in tmp_path.glob("checkpoints/trial/*/common.safetensors"):
        path.unlink()
    with pytest.warns(CserWarning, match="is not there") as said:
        assert step_after_restore(tmp_path) == 0
    assert len(said) == 2


@pytest.mark.parametrize(
    ("values", "difference"),
    [({"momentum": 0.8}, "momentum 0.9 there, 0.8 here"), ({"workers": 2}, f"workers {N} there, 2 here")],
)
def test_a_checkpoint_of_another_configuration_is_refused(
    values: dict[str, Any], difference: str, tmp_path: Path
) -> None:
    """The error names the setting and the way out."""
    saved(tmp_path, 7)
    with pytest.raises(ValueError, match="checkpoint of another configuration") as caught:
        step_after_restore(tmp_path, **values)
    assert difference in str(caught.value)
    assert "or remove it" in str(caught.value)


def test_what_workers_share_is_stored_once(tmp_path: Path) -> None:
    """Synchronous SGD has one model, whatever the number of workers; CSER's models differ by design."""
    stored = {}
    for method in ("sgd", "cser"):
        (tmp_path / method).mkdir()
        saved(tmp_path / method, 7, method=method)
        store = CheckpointStore(str(tmp_path / method), "trial")
        stored[method] = set(store.read(7, "rank-0.safetensors", store.manifest(7))[0])
    assert {"x", "own.momentum_buffer"} & stored["sgd"] == set()
    assert {"x", "own.momentum_buffer"} <= stored["cser"]


def test_nothing_is_saved_before_it_is_time(tmp_path: Path) -> None:
    """A short trial never touches the disk."""
    stack, record = begin(stacked("cser"))
    go(stack, record, 3)
    Checkpoints(str(tmp_path), "trial", 3600).save(stack, record)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_does_not_end_the_run(tmp_path: Path) -> None:
    """The warning names the file; the checkpoint before stands."""
    saved(tmp_path, 3)
    stack, record = begin(stacked("cser"))
    go(stack, record, 5)
    (tmp_path / "checkpoints/trial/step-00000005").write_text("in the way")
    with pytest.warns(CserWarning, match="No checkpoint was made"):
        Checkpoints(str(tmp_path), "trial", 0).save(stack, record)
    assert step_after_restore(tmp_path) == 3


class Interrupted(Exception):
    """Ends a trial at a report, as a kill would."""


def test_training_goes_on_and_leaves_nothing_behind(tmp_path: Path) -> None:
    """The second call takes the steps that are missing, and both together report every evaluation once."""
    configs = stacked("cser", evaluations=6)
    seen: list[int] = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()

    def run(folder: str, until: int) -> list[RunRow]:
        def report(epochs: list[EpochRow], runs: list[RunRow]) -> None:
            if epochs[0].evaluation == until:
                raise Interrupted
            seen.append(epochs[0].evaluation)

        return train(
            configs, Communicator(N, group=None), CPU, IDENTITY, report, Checkpoints(folder, "trial", every_s=0)
        )

    undisturbed = run(str(tmp_path / "one"), 99)
    seen.clear()
    with pytest.raises(Interrupted):
        run(str(tmp_path / "two"), 4)
    finished = run(str(tmp_path / "two"), 99)
    assert seen == [0, 1, 2, 3, 4, 5]
    assert [row.test_loss for row in finished] == [row.test_loss for row in undisturbed]
    assert list(tmp_path.glob("*/checkpoints/*")) == []
