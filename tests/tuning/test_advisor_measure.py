"""What a plan measures itself: a link between real processes, by two sizes of message."""

import json
from collections.abc import Iterator

import pytest
import torch

from tests.processes import run_processes
from tests.tuning.command_line import cli
from tuning.advise.measure import LARGE_BYTES, SMALL_BYTES, Measured, link_of, measure_group


def test_two_times_give_latency_and_rate() -> None:
    """0.3 ms and 1 Gb/s between 4 workers: each time is latency + 3/2 of the bytes over the rate."""
    small_s, large_s = (0.3e-3 + 1.5 * size * 8 / 1e9 for size in (SMALL_BYTES, LARGE_BYTES))
    found = link_of(4, small_s, large_s, "gloo")
    assert found == Measured(4, pytest.approx(0.3e-3), pytest.approx(1e9), "gloo")


def test_times_that_give_no_rate_are_refused() -> None:
    """A large message that was no slower than a small one was measured on a link that something else filled."""
    with pytest.raises(
        ValueError, match="no rate can be told from that; measure again on a quiet link, or give --rate"
    ):
        link_of(2, 0.01, 0.01, "gloo")


def test_processes_agree_on_what_they_measured() -> None:
    """Every rank gets the same answer, a number of workers, and a rate that memory can have."""
    found = run_processes(3, lambda: measure_group(torch.device("cpu")))
    assert found[0] == found[1] == found[2]
    assert (found[0].workers, found[0].backend) == (3, "gloo")
    assert 1e7 < found[0].rate < 1e12
    assert 0 <= found[0].latency_s < 1


@pytest.fixture
def ray() -> Iterator[None]:
    """A local cluster that ends with the test."""
    from cser_ray.train import cluster

    cluster.connect(num_cpus=2)
    yield
    cluster.shutdown()


@pytest.mark.ray
def test_on_a_ray_cluster_as_many_workers_as_asked_for_measure(ray: None) -> None:
    """A Ray Train run of 2 workers; they may share CPUs, and the plan says what they found."""
    job = ("plan", "--params", "2000000", "--step-ms", "20", "--measure", "--workers", "2", "--format", "json")
    result = cli(*job)
    assert result.exit_code == 0, result.output
    said = json.loads(result.stdout)
    assert "by all-reduces of two sizes over gloo between 2 workers" in said["measured"][0]
    assert 1e7 < said["job"]["rate"] < 1e12
