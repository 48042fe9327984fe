"""`cser-ray bench links` on a real link: its bytes, its order of methods, and that it leaves nothing behind."""

import csv
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from cser_ray.bench.hosts.namespaces import NAMESPACES, linked_hosts, missing_rights
from cser_ray.store.read import read_runs

pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(bool(missing_rights()), reason=f"{missing_rights()}, which .ci/run has and installs"),
]

COMMAND = [sys.executable, "-m", "cser_ray.bench", "links", "--device", "cpu", "--rate", "100mbit", "--ratios", "8"]
DENSE = 2_109_450 * 4
"""Bytes that a ring of two sends a step for the default model."""


def left_by(maker: int) -> list[str]:
    """Namespaces that a process has made and not removed."""
    return [path.name for path in NAMESPACES.glob(f"cser-{maker}-*")]


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, str]]:
    """The rows of one short run, by method."""
    out = tmp_path_factory.mktemp("links") / "rows.csv"
    command = [*COMMAND, "--methods", "ddp,csea,local-sgd", "--steps", "6", "--out", str(out)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    assert left_by(process.pid) == []
    with out.open() as file:
        return {row["method"]: row for row in csv.DictReader(file)}


def test_bytes_are_those_of_the_interface(rows: dict[str, dict[str, str]]) -> None:
    """For a megabyte a step and more, the ledger and the interface's own counter agree within 2 %."""
    for method in ("csea", "local-sgd"):
        ledger, interface = float(rows[method]["ledger_bytes"]), float(rows[method]["interface_bytes"])
        assert ledger > 1e6
        assert interface == pytest.approx(ledger, rel=0.02)
    assert rows["ddp"]["ledger_bytes"] == ""
    assert float(rows["ddp"]["interface_bytes"]) == pytest.approx(DENSE, rel=0.02)
    assert float(rows["no-sync"]["interface_bytes"]) < 1000


def test_compression_shortens_the_step(rows: dict[str, dict[str, str]]) -> None:
    """Eight times fewer bytes take a fraction of DDP's time, and nothing beats what the link needs for its bytes."""
    over_local = {method: float(row["over_local"]) for method, row in rows.items()}
    assert over_local["ddp"] > 2 * over_local["csea"] > 2
    assert float(rows["ddp"]["step_ms"]) > DENSE * 8 / 1e8 * 1e3
    assert float(rows["csea"]["exposed_ms"]) == pytest.approx(
        float(rows["csea"]["step_ms"]) - float(rows["csea"]["local_ms"])
    )


def test_hosts_of_two_processes(tmp_path: Path) -> None:
    """A method of ours sends over the link what two flat workers would; DDP's ring of all four sends half as much again."""
    out = tmp_path / "rows.csv"
    command = [*COMMAND, "--processes-per-worker", "2", "--methods", "ddp,csea", "--steps", "3", "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert "2 workers of 2 processes over 100 Mb/s" in done.stdout
    with out.open() as file:
        rows = {row["method"]: row for row in csv.DictReader(file)}
    assert {row["processes_per_worker"] for row in rows.values()} == {"2"}
    ledger = float(rows["csea"]["ledger_bytes"])
    assert ledger == pytest.approx(DENSE / 8, rel=0.01)
    assert float(rows["csea"]["interface_bytes"]) == pytest.approx(ledger, rel=0.02)
    assert float(rows["ddp"]["interface_bytes"]) == pytest.approx(1.5 * DENSE, rel=0.02)


def test_sigterm_leaves_nothing(tmp_path: Path) -> None:
    """Ended in the middle of its work, it removes its hosts, its processes and its folder."""
    process = subprocess.Popen(
        [*COMMAND, "--methods", "ddp"],
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=os.environ | {"TMPDIR": str(tmp_path)},
    )  # fmt: skip
    assert process.stderr is not None
    for line in process.stderr:
        if "ddp" in line:
            break
    pids = [pid for name in left_by(process.pid) for pid in running_on(name)]
    assert len(pids) == 2
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=30) == 128 + signal.SIGTERM
    process.stderr.close()
    assert left_by(process.pid) == []
    assert [pid for pid in pids if Path(f"/proc/{pid}").exists()] == []
    assert list(tmp_path.iterdir()) == []


def test_a_rank_that_dies_ends_its_link_and_keeps_the_rows(tmp_path: Path) -> None:
    """What was measured before is printed and kept, the error says in which cell, and the exit code is not zero."""
    out = tmp_path / "rows.csv"
    process = subprocess.Popen(
        [*COMMAND, "--methods", "csea", "--out", str(out)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    for line in process.stderr:
        if "2 of 2, csea" in line:
            break
    (pid,) = running_on(f"cser-{process.pid}-1")
    os.kill(int(pid), signal.SIGKILL)
    said = process.stderr.read()
    process.stderr.close()
    assert process.wait(timeout=30) == 1
    assert "100mbit, in csea at R_C 8: rank" in said
    assert [row["method"] for row in csv.DictReader(out.read_text().splitlines())] == ["no-sync"]
    assert left_by(process.pid) == []


def running_on(namespace: str) -> list[str]:
    """The processes of a host."""
    done = subprocess.run(["ip", "netns", "pids", namespace], capture_output=True, text=True, check=True)
    return done.stdout.split()


def test_the_next_start_removes_what_a_killed_one_left() -> None:
    """SIGKILL cannot be caught, so the namespaces of a dead maker go when the next ones come."""
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    subprocess.run(["ip", "netns", "add", f"cser-{dead.pid}-0"], check=True)
    with linked_hosts(2, "1gbit"):
        assert left_by(dead.pid) == []


def test_hosts_on_a_bridge_reach_each_other_at_the_rate() -> None:
    """Three hosts share a network; what one sends to another is counted and shaped on its way."""
    receive = (
        "import socket, time\nserver = socket.create_server(('10.211.0.3', 5000)); print('up', flush=True)\n"
        "peer, _ = server.accept(); start = time.perf_counter(); size = 0\n"
        "while data := peer.recv(1 << 20): size += len(data)\n"
        "print(size, time.perf_counter() - start)"
    )
    send = "import socket\nsocket.create_connection(('10.211.0.3', 5000)).sendall(bytes(2_500_000))"
    with linked_hosts(3, "50mbit") as hosts:
        with subprocess.Popen(
            hosts[2].command(sys.executable, "-c", receive), stdout=subprocess.PIPE, text=True
        ) as server:
            assert server.stdout is not None
            assert server.stdout.readline() == "up\n"
            subprocess.run(hosts[0].command(sys.executable, "-c", send), check=True, timeout=30)
            size, seconds = server.stdout.readline().split()
        sent = [host.sent() for host in hosts]
    assert int(size) == 2_500_000
    assert float(seconds) == pytest.approx(0.4, rel=0.25)
    assert sent[0] == pytest.approx(2_500_000, rel=0.02)
    assert sent[1] < 10_000


def test_a_command_runs_on_a_ray_cluster_of_hosts(tmp_path: Path) -> None:
    """A study's real workers are on hosts of their own, and what they send goes over the links; its exit code is kept."""
    bench = [sys.executable, "-m", "cser_ray.bench", "cluster", "--rate", "100mbit", "--device", "cpu", "--"]
    study = "cser-ray train --method sgd --steps 64 --workers 2 --distributed --out"
    done = subprocess.run([*bench, *study.split(), str(tmp_path)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    sent = [1e6 * float(size) for size in re.findall(r"([\d.]+) MB", done.stderr.rpartition("Sent over the links:")[2])]
    (ledger,) = read_runs(str(tmp_path))["bytes_sent"]
    assert len(sent) == 2
    assert min(sent) > ledger > 1e6
    failed = subprocess.run([*bench, "false"], capture_output=True, text=True, timeout=300)
    assert failed.returncode == 1, failed.stderr
