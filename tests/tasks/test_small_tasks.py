"""digits and mnist1d: what a comparison relies on."""

import math
import random
from collections.abc import Callable
from types import ModuleType

import numpy as np
import pytest
import torch

from cser_ray.tasks import digits, make_task, mnist1d

SMALL = ["digits", "mnist1d"]


def draws_after(act: Callable[[], object]) -> tuple[float, float, float]:
    """Next numbers of the three global generators, seeded before an act."""
    random.seed(5)
    np.random.seed(5)  # noqa: NPY002
    torch.manual_seed(5)
    act()
    return random.random(), np.random.rand(), float(torch.rand(()))  # noqa: NPY002


@pytest.mark.parametrize(("name", "parameters"), [("digits", 9098), ("mnist1d", 7562)])
def test_parameter_counts(name: str, parameters: int) -> None:
    """9 098 and 7 562 parameters: no bias before BatchNorm."""
    assert sum(p.numel() for p in make_task(name).model().parameters()) == parameters


@pytest.mark.parametrize(
    ("name", "features", "sizes"), [("digits", 64, (1200, 240, 357)), ("mnist1d", 40, (3500, 500, 1000))]
)
def test_sizes_and_shapes(name: str, features: int, sizes: tuple[int, ...]) -> None:
    """Splits have the documented sizes; a batch of 8 rows of 5 is [8, 5, features] float and [8, 5] int64."""
    splits = make_task(name).splits()
    assert (len(splits.train), len(splits.validation), len(splits.test)) == sizes
    inputs, targets = splits.train.batch(torch.arange(40).view(8, 5), [torch.Generator()] * 8)
    assert (inputs.shape, inputs.dtype) == ((8, 5, features), torch.float32)
    assert (targets.shape, targets.dtype) == ((8, 5), torch.int64)


@pytest.mark.parametrize("name", SMALL)
def test_splits_share_no_sample(name: str) -> None:
    """No sample is in two splits."""
    splits = make_task(name).splits()
    parts = [part.batch(torch.arange(len(part))[None])[0][0] for part in (splits.train, splits.validation, splits.test)]
    seen = [{row.numpy().tobytes() for row in part} for part in parts]
    assert len(set.union(*seen)) == sum(map(len, seen))


@pytest.mark.parametrize("name", SMALL)
def test_every_class_is_in_every_split_in_proportion(name: str) -> None:
    """Each class makes 6 to 14 % of each split."""
    splits = make_task(name).splits()
    for part in (splits.train, splits.validation, splits.test):
        share = torch.bincount(part.batch(torch.arange(len(part))[None])[1][0], minlength=10) / len(part)
        assert 0.06 < share.min() <= share.max() < 0.14


@pytest.mark.parametrize(("name", "module"), [("digits", digits), ("mnist1d", mnist1d)])
def test_making_the_data_again_gives_the_same_and_moves_no_global_generator(name: str, module: ModuleType) -> None:
    """The content hash is the same under another global seed, and a caller's own random streams go on undisturbed.

    The mnist1d package seeds `random` and `numpy.random`.
    """
    before = make_task(name).content_hash()
    assert len(before) == 12
    module.load.cache_clear()
    expected = draws_after(lambda: None)
    assert draws_after(make_task(name).splits) == expected
    assert make_task(name).content_hash() == before


def test_digits_are_standardised_by_their_training_part() -> None:
    """Training pixels have mean 0 and deviation 1; the test pixels only nearly."""
    splits = make_task("digits").splits()
    train, test = (part.batch(torch.arange(len(part))[None])[0] for part in (splits.train, splits.test))
    assert abs(train.mean()) < 1e-5
    assert abs(train.std() - 1) < 1e-5
    assert 1e-5 < abs(test.mean()) < 0.1


@pytest.mark.parametrize("name", SMALL)
def test_the_constant_predictor_of_ten_classes(name: str) -> None:
    """ln 10 nats."""
    assert make_task(name).constant_loss() == pytest.approx(math.log(10))
