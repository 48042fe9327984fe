"""`cser-ray doctor` on two hosts with a shaped link: its rate, and bytes as the interface counts them."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from cser_ray.bench.hosts.namespaces import Host, linked_hosts, missing_rights
from tests.doctor.running import FOREVER, PROGRAM, environment, left

pytestmark = [
    pytest.mark.timed,
    pytest.mark.skipif(bool(missing_rights()), reason=f"{missing_rights()}, which .ci/run has and installs"),
]
DOCTOR = [sys.executable, "-c", "from cser_ray.commands.cli import main; main()", "doctor", "--format", "json"]


def watched(hosts: tuple[Host, ...], folder: Path, seconds: int, *arguments: str) -> tuple[str, str]:
    """What doctor prints on each of two hosts, of a program with one rank on each."""
    ranks = [
        subprocess.Popen(
            host.command(*DOCTOR, "--seconds", str(seconds), "--", sys.executable, PROGRAM, *arguments),
            stdout=subprocess.PIPE,
            text=True,
            env=environment(folder)
            | {"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": hosts[0].address}
            | {"MASTER_PORT": "29556", "GLOO_SOCKET_IFNAME": host.interface, "CUDA_VISIBLE_DEVICES": ""},
        )
        for rank, host in enumerate(hosts)
    ]
    first, second = (rank.communicate(timeout=120)[0] for rank in ranks)
    assert [rank.returncode for rank in ranks] == [0, 0]
    return first, second


def test_the_rate_of_a_shaped_link_is_found(tmp_path: Path) -> None:
    """Of 100 Mb/s, what headers leave to payload, and the plan is for it; all ranks' records have come to rank 0's host."""
    with linked_hosts(2, "100mbit") as hosts:
        first, second = watched(hosts, tmp_path, 4, "plain", FOREVER)
    said = json.loads(first)
    assert said["link"]["rate"] == pytest.approx(0.956e8, rel=0.1)
    assert said["plan"]["job"]["rate"] == said["link"]["rate"]
    assert [record["rank"] for record in said["records"]] == [0, 1]
    assert second == ""
    assert left(tmp_path) == []


def test_the_bytes_are_those_that_leave_the_interface(tmp_path: Path) -> None:
    """DDP's bytes a step, times its steps, are what the interface has sent, but for headers and what the start takes."""
    steps = 1000
    with linked_hosts(2, "1gbit") as hosts:
        before = hosts[0].sent()
        first, _ = watched(hosts, tmp_path, 100, "ddp", str(steps))
        left_interface = hosts[0].sent() - before
    (record,) = json.loads(first)["records"]  # rank 1's comes to rank 0 only where the time has ended the run
    sent = steps * sum(each["sent"] for each in record["sent"].values())
    assert sent < left_interface < 1.2 * sent
