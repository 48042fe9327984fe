"""How trials are carried out: values that cannot be are refused, and settings of other kinds are passed over."""

from typing import Any

import pytest

from cser_ray.train.cluster import _fitting, _largest_share
from cser_ray.train.logistics import Logistics


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"cpus_per_worker": 0.0}, "cpus_per_worker must be above 0, not 0.0"),
        ({"cpus_per_worker": 1.5}, "a fraction of 1 or a whole number, not 1.5"),
        ({"gpus_per_trial": 1.5}, "gpus_per_trial is a fraction of 1 or a whole number, not 1.5"),
        ({"checkpoint_s": -1.0}, "checkpoint_s must be at least 0, not -1.0"),
        ({"timeout_s": 0.0}, "timeout_s must be above 0, not 0.0"),
        ({"wait_s": float("nan")}, "wait_s must be at least 0, not nan"),
    ],
)
def test_what_cannot_be_is_refused(values: dict[str, Any], message: str) -> None:
    """With the value."""
    with pytest.raises(ValueError, match=message):
        Logistics(**values)


def test_settings_of_a_command() -> None:
    """Those that are not given keep their defaults."""
    assert Logistics.of({"timeout_s": 5.0, "method": "sgd"}) == Logistics(timeout_s=5.0)


@pytest.mark.parametrize(
    ("nodes", "cpus", "processes"), [([2.0], 1.0, 2), ([1.0, 1.0], 2.0, 0), ([0.3, 1.0], 0.1, 13), ([4.0, 3.0], 2.0, 3)]
)
def test_a_process_lies_on_one_node(nodes: list[float], cpus: float, processes: int) -> None:
    """CPUs of two nodes do not add up; nor does rounding take one away."""
    assert _fitting(nodes, cpus) == processes


@pytest.mark.parametrize(
    ("nodes", "processes", "share"), [([2.0], 3, 0.6666), ([1.0, 1.0], 3, 0.5), ([1.0, 0.5], 2, 0.5), ([], 2, 0.0)]
)
def test_the_largest_share_that_fits(nodes: list[float], processes: int, share: float) -> None:
    """What the error proposes does fit, and nothing larger would."""
    assert _largest_share(nodes, processes) == share
    if share:
        assert _fitting(nodes, share) >= processes > _fitting(nodes, share + 1e-3)
