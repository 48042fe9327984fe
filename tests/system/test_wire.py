"""The ledger against the interfaces' own counters, on a real link between two hosts of one rank or several."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

from cser_ray.bench.hosts.namespaces import Host, linked_hosts, missing_rights
from tests.system.linear_rank import HOSTS, KEPT, SIDE

pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(bool(missing_rights()), reason=f"{missing_rights()}, which .ci/run has and installs"),
]

STEPS = 16
CHUNKS = math.ceil((SIDE * SIDE + SIDE) / 4096)
BY_HAND = {
    "ef-sgd top-k": CHUNKS * KEPT * (1.5 + 4),
    "ef-sgd two-way": 2 * math.ceil(CHUNKS / HOSTS) * (KEPT * (1.5 + 1) + 4),
}
"""Bytes that leave one of two hosts in a step: places of 12 bits; values of 32, or, there and back, of 8 with a scale."""
Rank = subprocess.Popen[str]


@pytest.mark.parametrize("per_host", [1, 2])
@pytest.mark.parametrize("method", ["sgd", "ef-sgd", "cser", "ef-sgd top-k", "ef-sgd two-way"])
def test_the_ledger_is_what_leaves_a_host(method: str, per_host: int, tmp_path: Path) -> None:
    """Within 2 %, over messages of half a megabyte and more; dense averages inside a host do not leave it."""
    with linked_hosts(HOSTS, "1gbit") as hosts:
        places = [host for host in hosts for _ in range(per_host)]
        common = (method, str(per_host))
        ranks = [start(host, *common, str(rank), str(tmp_path / "store")) for rank, host in enumerate(places)]
        try:
            assert [said(rank) for rank in ranks] == ["begin"] * len(ranks)
            before = [host.sent() for host in hosts]
            for rank in ranks:
                go(rank)
            ledgers = [json.loads(said(rank)) for rank in ranks]
            sent = [host.sent() - at for host, at in zip(hosts, before, strict=True)]
            for rank in ranks:
                go(rank)
                rank.wait(timeout=30)
        finally:
            for rank in ranks:
                rank.kill()
                rank.communicate()
    assert ledgers == [ledgers[0]] * len(ranks)
    assert ledgers[0] > 5e5 * STEPS
    if method in BY_HAND:
        assert ledgers[0] == STEPS * BY_HAND[method]
    for counted in sent:
        assert counted == pytest.approx(ledgers[0], rel=0.02)


def start(host: Host, *arguments: str) -> Rank:
    """A rank on a host, with pipes to and from it."""
    return subprocess.Popen(
        host.command(sys.executable, "-m", "tests.system.linear_rank", *arguments, str(STEPS)),
        env={**os.environ, "GLOO_SOCKET_IFNAME": host.interface, "OMP_NUM_THREADS": "1"},
        cwd=Path(__file__).parents[2],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def said(rank: Rank) -> str:
    """The next line of a rank."""
    assert rank.stdout is not None
    return rank.stdout.readline().strip()


def go(rank: Rank) -> None:
    """Let a rank that waits go on."""
    assert rank.stdin is not None
    rank.stdin.write("\n")
    rank.stdin.flush()
