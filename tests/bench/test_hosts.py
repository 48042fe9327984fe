"""What can be known of hosts without making any."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from cser_ray.bench.hosts.namespaces import exit_on_signals, missing_rights, stale
from cser_ray.communication.links import bits_per_second, burst


@pytest.mark.parametrize(("rate", "bits"), [("100mbit", 1e8), ("2.5gbit", 2.5e9), ("640kbit", 6.4e5)])
def test_rates_are_read_as_tc_reads_them(rate: str, bits: float) -> None:
    """Bits, in powers of ten."""
    assert bits_per_second(rate) == bits


@pytest.mark.parametrize("rate", ["100", "1Gbit", "0mbit", "100mbps", ""])
def test_a_rate_that_tc_would_take_otherwise_is_refused(rate: str) -> None:
    """Mbps are bytes to tc; nothing is guessed."""
    with pytest.raises(ValueError, match="write it as tc does"):
        bits_per_second(rate)


def test_the_burst_is_a_millisecond_of_the_rate() -> None:
    """And never smaller than what the kernel hands over at once."""
    assert burst(1e10) == 1_250_000
    assert burst(1e8) == 128 * 1024


def test_missing_tools_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without ip and tc on PATH the reason says so; with both there, only root can be lacking."""
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "`ip` of iproute2 on PATH and `tc`" in missing_rights()
    for tool in ("ip", "tc"):
        (tmp_path / tool).write_text("#!/bin/sh\n")
        (tmp_path / tool).chmod(0o755)
    assert "iproute2" not in missing_rights()
    assert bool(missing_rights()) == (os.geteuid() != 0)


def test_only_namespaces_of_the_dead_are_stale(tmp_path: Path) -> None:
    """A living maker's stay, and so do names that are not ours; a process's own number was a dead one's."""
    done = subprocess.Popen([sys.executable, "-c", ""])
    done.wait()
    names = {f"cser-{done.pid}-0", f"cser-{done.pid}-switch", f"cser-{os.getpid()}-1"}
    for name in (*names, f"cser-{os.getppid()}-0", "cser-lab", f"other-{done.pid}-0"):
        (tmp_path / name).touch()
    assert set(stale(tmp_path)) == names
    assert stale(tmp_path / "none") == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_runs_every_clean_up(number: int) -> None:
    """The clean-up of a `with` runs to its end though the signal comes twice, and the exit code tells which it was."""
    program = (
        "import os, sys\nfrom cser_ray.bench.hosts.namespaces import exit_on_signals\n"
        "with exit_on_signals():\n    try:\n        os.kill(os.getpid(), int(sys.argv[1]))\n"
        "    finally:\n        os.kill(os.getpid(), int(sys.argv[1]))\n        print('clean')"
    )
    done = subprocess.run([sys.executable, "-c", program, str(number)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (128 + number, "clean\n")


def test_handlers_come_back() -> None:
    """Afterwards signals do what they did before."""
    before = signal.getsignal(signal.SIGTERM)
    with exit_on_signals():
        assert signal.getsignal(signal.SIGTERM) != before
    assert signal.getsignal(signal.SIGTERM) == before
