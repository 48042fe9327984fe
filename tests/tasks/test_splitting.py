import torch

from cser_ray.tasks.base import Splits, TensorDataset
from cser_ray.tasks.splitting import fingerprint, splits_fingerprint, stratified_order

LABELS = torch.tensor([0] * 10 + [1] * 20 + [2] * 70)[torch.randperm(100, generator=torch.Generator().manual_seed(1))]


def test_the_order_is_a_permutation() -> None:
    """Every sample stands once in the order."""
    assert stratified_order(LABELS, 3).sort().values.equal(torch.arange(100))


def test_every_stretch_holds_the_classes_in_proportion() -> None:
    """Any ten samples in a row of a 10 : 20 : 70 mixture hold 1 : 2 : 7, give or take one."""
    counts = torch.stack([torch.bincount(part, minlength=3) for part in LABELS[stratified_order(LABELS, 3)].split(10)])
    assert (counts - torch.tensor([1, 2, 7])).abs().max() <= 1


def test_the_order_is_random_within_a_class() -> None:
    """Two seeds order the samples of a class differently, and a seed always alike."""
    one, again, other = (stratified_order(torch.zeros(50, dtype=torch.long), seed) for seed in (1, 1, 2))
    assert one.equal(again)
    assert not one.equal(other)
    assert not one.equal(torch.arange(50))


def test_a_fingerprint_forgives_the_last_bit_alone() -> None:
    """1e-9 more in a float changes no digit; a hundredth more, another integer or another shape does."""
    x = torch.tensor([0.25, 1.5], dtype=torch.float64)
    assert fingerprint([x]) == fingerprint([x + 1e-9])
    assert len({fingerprint([y]) for y in (x, x + 0.01, x.view(2, 1), x.long(), x.float(), "x")}) == 6


def test_moving_a_sample_between_splits_changes_the_fingerprint() -> None:
    """The same samples cut elsewhere are other data."""

    def cut(at: int) -> Splits:
        x, y = torch.arange(6.0), torch.arange(6)
        return Splits(TensorDataset(x[:at], y[:at]), TensorDataset(x[at:5], y[at:5]), TensorDataset(x[5:], y[5:]))

    assert splits_fingerprint(cut(3)) == splits_fingerprint(cut(3))
    assert splits_fingerprint(cut(3)) != splits_fingerprint(cut(2))
