"""The comparison of real workers' steps with those that `bench links` times: it runs, and compares like with like."""

import pytest
import torch
import torch.distributed as dist

from benchmarks.real_workers_vs_links import (
    LEAD,
    Row,
    configuration,
    interval_of,
    rows_of,
    workload_of,
)
from cser_ray.bench.links.cases import make_cases
from cser_ray.bench.links.training import build_optimizer
from cser_ray.communication.communicator import Communicator
from cser_ray.train.stack import Stack
from tests.processes import run_processes

CPU = torch.device("cpu")


def test_every_method_has_a_row() -> None:
    """Two processes of gloo, few steps; both agree on every time, and overlap and delay are the real workers' too."""

    def each() -> list[Row]:
        return list(rows_of(["sgd", "csea+delay4", "cser-pl+overlap"], "wrn-10-1", 1, 1, CPU))

    one, other = run_processes(2, each)
    assert one == other
    assert [row.method for row in one] == ["sgd", "csea+delay4", "cser-pl+overlap"]
    for row in one:
        assert (row.backend, row.workers, row.execution) == ("gloo", 2, "eager")
        assert row.over_links == pytest.approx(row.real_ms / row.links_ms)
        assert row.windows.startswith("1x")
    assert LEAD > 0


@pytest.mark.parametrize("text", ["sgd+overlap", "local-sgd", "csea+delay4", "cser", "cser-pl+overlap"])
def test_both_sides_have_one_optimizer(text: str) -> None:
    """The same method, structure, compressors, delay and overlap over as many parameters."""
    (case,) = (each for each in make_cases([text], [32.0], {}) if each.method == text.partition("+")[0])

    def each() -> tuple[str, str, bool, bool, int, int]:
        config = configuration(case, "wrn-10-1", 1, dist.get_world_size(), 64, "float32")
        real = Stack([config], Communicator(), CPU).optimizer
        workload = workload_of(config, CPU)
        links = build_optimizer(case, workload.fresh())

        def told(optimizer: object) -> str:
            names = ("reset_interval", "reset_delay", "reset_compressor", "gradient_compressor")
            return " ".join(str(getattr(optimizer, name, None)) for name in names)

        overlaps = real.overlap is not None, links.overlap is not None
        return told(real), told(links), *overlaps, real.flat.numel, workload.params

    for real, links, real_overlaps, links_overlaps, real_d, links_d in run_processes(2, each):
        assert real == links
        assert real_overlaps == links_overlaps == text.endswith("overlap")
        assert real_d == links_d


def test_the_interval_holds_the_ratio() -> None:
    """Of windows that are all alike it is a point; else it has the ratio of medians inside."""
    assert interval_of([2.0] * 5, [1.0] * 5) == (2.0, 2.0)
    low, high = interval_of([1.0, 2.0, 3.0], [1.0, 1.0, 1.0])
    assert low <= 2.0 <= high
    assert low < high
