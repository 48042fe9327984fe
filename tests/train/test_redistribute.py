"""Another number of workers goes on from a checkpoint: reset, then redistribute."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from cser_ray.communication.communicator import Communicator
from cser_ray.optimizers import EFSGD, DiLoCo, QSparseLocalSGD
from cser_ray.optimizers.systems.dist_ef_sgd import DistEFBlockSGD, DistEFSGD
from cser_ray.optimizers.systems.mem_sgd import MemSGD
from cser_ray.train import build
from cser_ray.train.checkpoints import Checkpoints
from cser_ray.train.record import Record
from cser_ray.train.stack import Stack
from tests.processes import run_processes
from tests.train.points import CPU, POINTS, N
from tests.train.test_checkpoints import STEPS, STOP, begin, go, stacked, state


def stopped(folder: Path, method: str = "cser", workers: int = N, **values: Any) -> tuple[Stack, Record]:
    """A trial that was saved at STOP, inside an interval."""
    stack, record = begin(stacked(method, workers=workers, **values))
    go(stack, record, STOP)
    Checkpoints(str(folder), "before", 0).save(stack, record)
    return stack, record


def going_on(folder: Path, method: str = "cser", workers: int = 2, **values: Any) -> tuple[Stack, Record]:
    """A trial with other workers that begins where the other one stood."""
    stack, record = begin(stacked(method, workers=workers, **values))
    Checkpoints(str(folder), "after", 0, earlier="before").restore(stack, record)
    return stack, record


def mean(tensor: Tensor) -> Tensor:
    """Over workers."""
    return tensor.double().mean(1, keepdim=True).to(tensor.dtype)


@pytest.mark.parametrize("workers", [1, 2, 3, 7])
@pytest.mark.parametrize("method", POINTS)
def test_every_worker_starts_from_the_mean_with_nothing_lost(method: str, workers: int, tmp_path: Path) -> None:
    """Model and momentum are the means; what error feedback had still to apply is applied, and no error is left."""
    before, _ = stopped(tmp_path, method)
    after, _ = going_on(tmp_path, method, workers)
    assert after.t == after.optimizer.t == STOP
    old, new = before.optimizer, after.optimizer
    feedback = {EFSGD: -1, MemSGD: -1, DistEFSGD: -1, DistEFBlockSGD: -1, QSparseLocalSGD: 1}
    sign = feedback.get(type(old), 0)  # in CSER's models the errors are in already
    waiting = mean(old.buffers().get("aside", sign * old.buffers().get("error", torch.zeros_like(old.x))))
    expected = mean(old.x) + waiting
    torch.testing.assert_close(new.x, expected.expand_as(new.x), rtol=1e-6, atol=1e-7)
    assert torch.equal(new.x, new.x[:, :1].expand_as(new.x))
    if method == "choco-sgd":
        assert torch.equal(new.buffers()["x_hat"], new.x), "all know that model"
        assert not new.buffers()["pull"].any()
        return
    for name, buffer in new.buffers().items():
        paid = name in ("error", "aside") and method not in (
            "dgc",
            "powersgd",
            "deepsqueeze",
        )  # theirs are not of models
        kept = torch.zeros_like(buffer) if paid else mean(old.buffers()[name]).expand_as(buffer)
        torch.testing.assert_close(buffer, kept, rtol=1e-6, atol=1e-9)


def test_the_test_above_had_something_to_lose(tmp_path: Path) -> None:
    """The models had parted, and there were errors and momentum."""
    stack, _ = stopped(tmp_path, "qsparse")
    for tensor in (stack.optimizer.x, *stack.optimizer.buffers().values()):
        assert not torch.allclose(tensor, mean(tensor).expand_as(tensor))


def test_diloco_keeps_what_it_applies_outside_of_workers(tmp_path: Path) -> None:
    """The outer step of this interval is still to come, from where the interval began."""
    before, _ = stopped(tmp_path, "diloco")
    after, _ = going_on(tmp_path, "diloco")
    assert isinstance(before.optimizer, DiLoCo)
    for name, buffer in before.optimizer.common_buffers().items():
        assert torch.equal(after.optimizer.common_buffers()[name], buffer)
        assert buffer.abs().sum() > 0


@pytest.mark.parametrize("implementation", ["I", "II"])
def test_resets_under_way_are_in_the_mean(implementation: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two of them would have changed each worker and not the mean; x_hat = x - e is the model again."""
    arguments = build.own_arguments
    delayed = {"reset_delay": 4, "implementation": implementation}
    monkeypatch.setattr(build, "own_arguments", lambda c, d=None: arguments(c, d) | delayed)
    before, _ = stopped(tmp_path)
    assert len(before.optimizer.extra_state()["in_flight"]) == 2
    after, record = going_on(tmp_path)
    assert after.optimizer.extra_state()["in_flight"] == []
    if implementation == "I":
        assert torch.equal(after.optimizer.common_buffers()["common"], after.optimizer.x[:, :1])
    go(after, record, STEPS)


def test_batchnorm_statistics_are_averaged(tmp_path: Path) -> None:
    """Those of floats; counts stay."""
    task = "tests.train.dropping:NoisyDigits"
    before, _ = stopped(tmp_path, task=task)
    after, _ = going_on(tmp_path, task=task)
    for name, buffer in before.workers.buffers.items():
        rows = buffer.view(2, N, *buffer.shape[1:])
        expected = mean(rows) if buffer.is_floating_point() else rows[:, :1]
        found = after.workers.buffers[name].view(2, 2, *buffer.shape[1:])
        assert torch.equal(found, expected.expand_as(found)), name


@pytest.mark.parametrize("workers", [2, 7])
def test_data_go_on_after_as_many_samples(workers: int, tmp_path: Path) -> None:
    """In new shards, as many passes in; the schedule and the reset interval go by steps, which are kept."""
    before, _ = stopped(tmp_path)
    after, _ = going_on(tmp_path, workers=workers)
    assert (STOP + after.shards.ahead) * workers == STOP * N
    assert after.shards.epochs(STOP) == pytest.approx(before.shards.epochs(STOP), rel=0.1)
    fresh, _ = begin(stacked("cser", workers=workers))
    taken = STOP * N // workers
    assert torch.equal(after.shards.indices(STOP + 1), fresh.shards.indices(taken + 1))
    assert not torch.equal(fresh.shards.indices(STOP + 1), fresh.shards.indices(taken + 1))


def test_bytes_of_both_parts_are_counted_by_their_own_workers(tmp_path: Path) -> None:
    """So the realised ratio stays that of the method, though a ring of 2 sends less than one of 4."""
    stack, record = stopped(tmp_path, "csea")
    sent = record.run_rows[0].bytes_sent
    undisturbed, alone = begin(stacked("csea"))
    go(undisturbed, alone, STEPS)
    after, record = going_on(tmp_path, "csea")
    go(after, record, STEPS)
    row = record.run_rows[0]
    dense = stack.communicator.dense_bytes(stack.n_params, STOP)
    dense += after.communicator.dense_bytes(after.n_params, STEPS - STOP)
    assert row.dense_bytes == round(dense)
    assert row.bytes_sent > sent
    assert row.realised_ratio == pytest.approx(alone.run_rows[0].realised_ratio, rel=0.05)


def test_it_stands_in_the_rows(tmp_path: Path) -> None:
    """Also in those after a further interruption, which goes on from checkpoints of its own."""
    stopped(tmp_path)
    after, record = going_on(tmp_path)
    go(after, record, 9)
    assert str(record.run_rows[0].note).startswith(f"went on at step {STOP} from {N} workers with 2: reset ")
    Checkpoints(str(tmp_path), "after", 0).save(after, record)
    again, repeated = going_on(tmp_path)
    assert (again.t, again.shards.ahead) == (9, after.shards.ahead)
    assert repeated.note == record.note
    assert state(again).keys() == state(after).keys()
    assert all(torch.equal(a, b) for a, b in zip(state(again).values(), state(after).values(), strict=True))


def test_it_may_happen_twice(tmp_path: Path) -> None:
    """From 4 to 2 and back: samples and dense bytes add up over three parts."""
    first, _ = stopped(tmp_path)
    second, record = going_on(tmp_path)
    go(second, record, 9)
    Checkpoints(str(tmp_path), "after", 0).save(second, record)
    third, record = begin(stacked("cser"))
    Checkpoints(str(tmp_path), "last", 0, earlier="after").restore(third, record)
    assert (9 + third.shards.ahead) * N == STOP * N + (9 - STOP) * 2
    dense = first.communicator.dense_bytes(first.n_params, STOP)
    assert str(record.note).count("went on at step") == 2
    assert record.dense_before == dense + second.communicator.dense_bytes(first.n_params, 9 - STOP)


@pytest.mark.parametrize("method", ["sgd", "cser", "qsparse"])
def test_processes_start_with_the_same_bits_as_virtual_workers(method: str, tmp_path: Path) -> None:
    """Each reads all that the others had saved: nothing has to be sent."""
    configs = stacked(method, workers=2)
    Stack(configs, Communicator(2, group=None), CPU)  # reads the data here rather than in every process
    stack, _ = stopped(tmp_path, method)

    def each() -> Tensor:
        stack, record = begin(configs, Communicator())
        Checkpoints(str(tmp_path), "after", 0, earlier="before").restore(stack, record)
        x = stack.optimizer.x.clone()
        go(stack, record, STEPS)
        return x

    virtual, _ = going_on(tmp_path, method)
    for x in run_processes(2, each):
        assert torch.equal(x, virtual.optimizer.x[:, :1])
    assert stack.t == STOP


def test_virtual_workers_go_on_from_processes(tmp_path: Path) -> None:
    """The mean over what two processes saved, each in a file of its own."""
    configs = stacked("cser", workers=2)
    Stack(configs, Communicator(2, group=None), CPU)

    def each() -> Tensor:
        stack, record = begin(configs, Communicator())
        go(stack, record, STOP)
        Checkpoints(str(tmp_path), "before", 0).save(stack, record)
        return stack.optimizer.x.clone()

    parts = torch.cat(run_processes(2, each), 1)
    after, _ = going_on(tmp_path, workers=3)
    torch.testing.assert_close(after.optimizer.x[:, :1], mean(parts), rtol=1e-6, atol=1e-7)


def test_only_the_number_of_workers_may_differ(tmp_path: Path) -> None:
    """Another setting is refused by name."""
    stopped(tmp_path)
    with pytest.raises(ValueError, match=r"another configuration: momentum 0\.9 there, 0\.8 here"):
        going_on(tmp_path, momentum=0.8)
