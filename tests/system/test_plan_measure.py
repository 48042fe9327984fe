"""`cser-ray plan --measure` on a shaped link: it finds the link's rate."""

import json
import os
import subprocess
import sys

import pytest

from cser_ray.bench.hosts.namespaces import linked_hosts, missing_rights

pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(bool(missing_rights()), reason=f"{missing_rights()}, which .ci/run has and installs"),
]


def test_the_rate_of_a_shaped_link_is_found() -> None:
    """Of 100 Mb/s, what headers leave to payload; one rank speaks, and DDP's predicted step is the link's."""
    plan = ["plan", "--params", "2000000", "--step-ms", "20", "--measure", "--format", "json"]
    with linked_hosts(2, "100mbit") as hosts:
        ranks = [
            subprocess.Popen(
                host.command(sys.executable, "-c", "from cser_ray.commands.cli import main; main()", *plan),
                stdout=subprocess.PIPE,
                text=True,
                env=os.environ
                | {"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": hosts[0].address}
                | {"MASTER_PORT": "29555", "GLOO_SOCKET_IFNAME": host.interface, "CUDA_VISIBLE_DEVICES": ""},
            )
            for rank, host in enumerate(hosts)
        ]
        first, second = (rank.communicate(timeout=100)[0] for rank in ranks)
    assert second == ""
    said = json.loads(first)
    assert said["job"]["rate"] == pytest.approx(0.956e8, rel=0.06)
    ddp = next(line for line in said["lines"] if line["method"] == "ddp")
    assert ddp["step_ms"] == pytest.approx(8e6 * 8 / 0.956e8 * 1e3, rel=0.1)
