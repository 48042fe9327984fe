"""What is special to one compressor: its values worked out by hand, and the arguments it refuses."""

import math

import pytest
import torch

from cser_ray.compressors import COMPRESSORS
from cser_ray.partial_sync import partial_sync
from tests.contract.three_workers import values, virtual


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("random-k", {"ratio": 0.5}),
        ("top-k", {"ratio": math.inf}),
        ("block-sign", {"block_size": 0}),
        ("qsgd", {"levels": 128}),
        ("qsgd", {"bucket_size": 0}),
    ],
)
def test_impossible_arguments_are_refused(name: str, arguments: dict[str, float]) -> None:
    """The error names the value."""
    with pytest.raises(ValueError, match=str(next(iter(arguments.values())))):
        COMPRESSORS[name](**arguments)


def test_top_k_keeps_the_largest() -> None:
    """The k coordinates of largest magnitude arrive as they were, the others wait in the residual."""
    v = torch.tensor([[1.0, -5.0, 2.0, 4.0, 0.0, -3.0]])
    sent, residual = partial_sync(v, COMPRESSORS["top-k"](ratio=2), virtual(1), 1, "gradient")
    assert sent.tolist() == [[0.0, -5.0, 0.0, 4.0, 0.0, -3.0]]
    assert residual.tolist() == [[1.0, 0.0, 2.0, 0.0, 0.0, 0.0]]


def test_block_sign_by_hand() -> None:
    """Every block is its mean magnitude times its signs, with sign(0) = +1; a short last block has its own length."""
    v = torch.tensor([[3.0, -1.0, 0.0, -4.0, 2.0, -6.0]])
    sent, _ = partial_sync(v, COMPRESSORS["block-sign"](block_size=4), virtual(1), 1, "gradient")
    assert sent.tolist() == [[2.0, -2.0, 2.0, -2.0, 4.0, -4.0]]


def test_qsgd_is_unbiased_before_its_scale() -> None:
    """(1 + omega) E C(v) = v, and every value is a whole number of at most s steps of its bucket."""
    qsgd = COMPRESSORS["qsgd"](levels=3, bucket_size=8)
    v, scale = values(1, 8), 1 + 8 / 9
    sent = torch.stack([scale * (v - qsgd.compress(v, call).residual()) for call in range(1, 2001)])
    levels = sent / (v.norm() / 3)
    torch.testing.assert_close(levels, levels.round(), rtol=0, atol=1e-12)
    assert levels.abs().max() <= 3
    assert ((sent.mean(0) - v).abs() < 4 * sent.std(0) / math.sqrt(2000)).all()


def test_qsgd_never_rounds_past_the_norm() -> None:
    """A coordinate that is its whole bucket stays at s steps: in fp32 127 + 0.9999999 is 128, which an int8 has not."""
    v = torch.ones(1, 2**20)
    residual = COMPRESSORS["qsgd"](levels=127, bucket_size=1).compress(v, 1).residual()
    torch.testing.assert_close(v - residual, torch.full_like(v, 1 / (1 + 1 / 127**2)))


def test_random_k_misses_no_coordinate() -> None:
    """Each coordinate is kept in k of d calls on average: 500 of 2000 here, within 4 standard deviations (19 each)."""
    random_k, v = COMPRESSORS["random-k"](ratio=4), torch.ones(1, 12)
    kept = torch.stack([v - random_k.compress(v, call).residual() for call in range(1, 2001)])
    assert ((kept.sum(0) - 500).abs() < 80).all()


def test_private_draws_are_part_of_the_results_identity() -> None:
    """Seed 7, stream 2, call 3: what workers 0 and 1 keep, on every machine and with every numpy."""
    random_k = COMPRESSORS["random-k"](ratio=4).with_streams((7,), 2, range(2))
    assert (random_k.compress(torch.ones(2, 12), 3).residual() == 0).nonzero()[:, 1].view(2, 3).tolist() == [
        [5, 7, 9],
        [4, 7, 10],
    ]
