"""Shards: who sees which sample when."""

import pytest
import torch

from cser_ray.seeds import Purpose
from cser_ray.train.shards import Shards


def shards(
    samples: int = 103, workers: int = 4, batch: int = 5, seeds: tuple[int, ...] = (7,), ids: range | None = None
):
    """Shards of every worker, or of those named."""
    return Shards(samples, workers, batch, seeds, range(workers) if ids is None else ids)


def one_pass(of: Shards, first: int = 1) -> torch.Tensor:
    """The sample numbers of a whole pass from step `first` on, [rows, steps * batch]."""
    return torch.cat([of.indices(step) for step in range(first, first + of.steps_per_epoch)], 1)


def test_workers_share_no_sample() -> None:
    """Over a pass, no sample is seen by two workers, or twice by one."""
    seen = one_pass(shards()).flatten().tolist()
    assert len(set(seen)) == len(seen) == 4 * 25
    assert set(seen) <= set(range(103))


def test_a_worker_keeps_its_shard() -> None:
    """Every pass goes through the same samples of a worker, in another order."""
    first, second = one_pass(shards()), one_pass(shards(), first=6)
    assert not torch.equal(first, second)
    assert torch.equal(first.sort(1).values, second.sort(1).values)


def test_workers_shuffle_apart() -> None:
    """No two go through their shards in the same order of places."""
    of = shards()
    places = [
        tuple(own.tolist().index(sample) for sample in seen.tolist())
        for own, seen in zip(of.calibration(25), one_pass(of), strict=True)
    ]
    assert len(set(places)) == 4


def test_a_pass_drops_what_fills_no_batch() -> None:
    """A shard of 25 holds 3 batches of 7; a pass over it is 3 steps long."""
    of = shards(batch=7)
    assert of.steps_per_epoch == 3
    assert [tuple(of.indices(step).shape) for step in (1, 3, 4)] == [(4, 7)] * 3
    assert (of.epochs(3), of.epochs(4)) == (1.0, pytest.approx(4 / 3))


def test_any_step_can_be_asked_for() -> None:
    """Batches are a function of the step: asking out of order, or again, changes nothing."""
    asked = shards()
    later, earlier = asked.indices(13).clone(), asked.indices(2).clone()
    assert torch.equal(shards().indices(13), later)
    assert torch.equal(shards().indices(2), earlier)
    assert torch.equal(asked.indices(13), later)


def test_a_worker_sees_the_same_wherever_it_runs() -> None:
    """Worker 2 of 4 in a process of its own, or with worker 3, has the batches and seeds that it has among all."""
    together = shards(seeds=(7, 8))
    alone, pair = (shards(seeds=(7, 8), ids=ids) for ids in (range(2, 3), range(2, 4)))
    for step in (1, 9):
        rows = together.indices(step).view(2, 4, -1)
        assert torch.equal(alone.indices(step).view(2, 1, -1), rows[:, 2:3])
        assert torch.equal(pair.indices(step).view(2, 2, -1), rows[:, 2:])
    rows = together.row_seeds(Purpose.AUGMENTATION)
    assert alone.row_seeds(Purpose.AUGMENTATION) == [rows[2], rows[6]]
    assert len(set(rows)) == 8


def test_seeds_part_data_and_equal_seeds_share_it() -> None:
    """Runs of one seed see the same batches, of another seed another division into shards."""
    first, same, other = shards(seeds=(7, 7, 8)).indices(1).view(3, 4, 5)
    assert torch.equal(first, same)
    assert not torch.equal(first.sort().values, other.sort().values)


def test_generators_follow_the_rows_seeds() -> None:
    """One generator a row, all different."""
    draws = [torch.rand((), generator=g).item() for g in shards(seeds=(7, 8)).generators(torch.device("cpu"))]
    assert len(set(draws)) == 8


@pytest.mark.parametrize(("limit", "size"), [(3, 3), (1000, 25)])
def test_calibration_takes_a_workers_own_samples(limit: int, size: int) -> None:
    """At most `limit` samples of the worker's shard, the same at any time."""
    of = shards()
    calibration = of.calibration(limit)
    assert calibration.shape == (4, size)
    for own, seen in zip(calibration, one_pass(of), strict=True):
        assert set(own.tolist()) <= set(seen.tolist())
    of.indices(40)
    assert torch.equal(of.calibration(limit), calibration)


def test_more_workers_than_samples() -> None:
    """The error says how many samples each has, and how many workers are possible."""
    expected = "8 workers share 103 training samples, 12 each: too few for a batch of 16. Take at most 6 workers"
    with pytest.raises(ValueError, match=expected):
        shards(workers=8, batch=16)
    assert shards(workers=6, batch=16).steps_per_epoch == 1
