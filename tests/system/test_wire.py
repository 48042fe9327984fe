"""The ledger against the interface's own counter, on a real link between two hosts."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from cser_ray.bench.hosts import linked_hosts, missing_rights

pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(bool(missing_rights()), reason=f"{missing_rights()}, which .ci/run has and installs"),
]

WORKER = Path(__file__).with_name("two_ranks.py")
STEPS = 16


@pytest.mark.parametrize("method", ["sgd", "ef-sgd", "cser"])
def test_the_ledger_is_what_leaves_the_interface(method: str, tmp_path: Path) -> None:
    """Over messages of half a megabyte and more, bytes by the ledger and by the interface agree within 2 %."""
    with linked_hosts(2, "1gbit") as hosts:
        ranks = [
            subprocess.Popen(
                host.command(
                    sys.executable,
                    "-m",
                    "tests.system.two_ranks",
                    method,
                    str(rank),
                    str(tmp_path / "store"),
                    str(STEPS),
                ),
                env={**os.environ, "GLOO_SOCKET_IFNAME": host.interface, "OMP_NUM_THREADS": "1"},
                cwd=WORKER.parents[2],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            for rank, host in enumerate(hosts)
        ]
        try:
            assert [_line(rank) for rank in ranks] == ["begin", "begin"]
            before = [host.sent() for host in hosts]
            for rank in ranks:
                _go(rank)
            ledgers = [json.loads(_line(rank)) for rank in ranks]
            sent = [host.sent() - at for host, at in zip(hosts, before, strict=True)]
            for rank in ranks:
                _go(rank)
                rank.wait(timeout=30)
        finally:
            for rank in ranks:
                rank.kill()
                rank.communicate()
    for ledger, counted in zip(ledgers, sent, strict=True):
        assert counted == pytest.approx(ledger, rel=0.02)


def _line(rank: "subprocess.Popen[str]") -> str:
    assert rank.stdout is not None
    return rank.stdout.readline().strip()


def _go(rank: "subprocess.Popen[str]") -> None:
    assert rank.stdin is not None
    rank.stdin.write("\n")
    rank.stdin.flush()
