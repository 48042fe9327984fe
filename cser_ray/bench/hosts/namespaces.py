"""Hosts on this machine: network namespaces joined by shaped links, each with an interface that counts its bytes.

Two hosts share a cable (a veth pair); more hang on a bridge. Each end of each cable is shaped, so a host sends and
receives at the rate, as on a full-duplex port. Everything lives inside namespaces: deleting those leaves nothing.
"""

import os
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from cser_ray.communication.links import bits_per_second, burst

INTERFACE = "eth0"
"""Name of each host's one interface, inside its own namespace."""
NAMESPACES = Path("/run/netns")
"""Where iproute2 keeps the names of namespaces."""
NETWORK_ONLY = {
    "NCCL_P2P_DISABLE": "1",
    "NCCL_SHM_DISABLE": "1",
    "NCCL_IB_DISABLE": "1",
    "NCCL_NVLS_ENABLE": "0",
}
"""Settings that leave NCCL only the network between two GPUs of one machine."""


@dataclass(frozen=True)
class Host:
    """A network namespace with one interface."""

    namespace: str
    address: str
    interface: str = INTERFACE

    def command(self, *arguments: str) -> list[str]:
        """The command that runs `arguments` on this host."""
        return ["ip", "netns", "exec", self.namespace, *arguments]

    def sent(self) -> int:
        """Bytes that have left by the interface, by its own counter, link-layer headers included."""
        return int(_run(*self.command("cat", str(counter(self.interface)))))


def counter(interface: str) -> Path:
    """The file in which the kernel counts what an interface has sent, for a process in the interface's namespace."""
    return Path(f"/sys/class/net/{interface}/statistics/tx_bytes")


def missing_rights() -> str:
    """Why this process cannot make hosts, in one line; empty if it can try."""
    lacking = [] if os.geteuid() == 0 else ["root"]
    lacking += [f"`{tool}` of iproute2 on PATH" for tool in ("ip", "tc") if shutil.which(tool) is None]
    return f"Network namespaces with shaped links need {' and '.join(lacking)}" if lacking else ""


def nccl_as_host(number: int, host: Host) -> dict[str, str]:
    """The environment in which NCCL takes a process to be on host `number`, and every way but its link to be closed."""
    return NETWORK_ONLY | {"NCCL_HOSTID": f"host{number}", "NCCL_SOCKET_IFNAME": host.interface}


def address_of(number: int) -> str:
    """The address of host 0, 1, ..."""
    return f"10.211.0.{number + 1}"


@contextmanager
def linked_hosts(count: int, rate: str) -> Iterator[tuple[Host, ...]]:
    """`count` >= 2 hosts, each on a link of `rate` (as tc writes it) each way; removed afterwards.

    One set a process at a time. Raises OSError, with the kernel's reason, where the rights are missing.
    """
    if count < 2:
        raise ValueError(f"A link joins two hosts or more, not {count}")
    bits_per_second(rate)
    if lacking := missing_rights():
        raise PermissionError(lacking)
    sweep()
    switch = f"cser-{os.getpid()}-switch"
    hosts = tuple(Host(f"cser-{os.getpid()}-{i}", address_of(i)) for i in range(count))
    try:
        for host in hosts:
            _run("ip", "netns", "add", host.namespace)
        if count == 2:
            _cable(hosts[0].namespace, INTERFACE, hosts[1].namespace, INTERFACE)
        else:
            _run("ip", "netns", "add", switch)
            _run("ip", "-n", switch, "link", "add", "name", "bridge", "type", "bridge")
            _run("ip", "-n", switch, "link", "set", "bridge", "up")
        for i, host in enumerate(hosts):
            if count > 2:
                _cable(host.namespace, INTERFACE, switch, f"port{i}")
                _run("ip", "-n", switch, "link", "set", f"port{i}", "master", "bridge")
                _shape(switch, f"port{i}", rate)
            _run("ip", "-n", host.namespace, "addr", "add", f"{host.address}/24", "dev", INTERFACE)
            _run("ip", "-n", host.namespace, "link", "set", "lo", "up")
            _shape(host.namespace, INTERFACE, rate)
        yield hosts
    finally:
        for namespace in (*(host.namespace for host in hosts), switch):
            _remove(namespace)


def stale(namespaces: Path, processes: Path = Path("/proc")) -> list[str]:
    """Namespaces made here by processes that have ended, including an earlier one that had this process's id."""
    names = sorted(path.name for path in namespaces.iterdir()) if namespaces.is_dir() else []
    makers = {name: found[1] for name in names if (found := re.fullmatch(r"cser-(\d+)-(?:\d+|switch)", name))}
    return [name for name, maker in makers.items() if int(maker) == os.getpid() or not (processes / maker).exists()]


def sweep() -> None:
    """Remove what a killed process left behind: SIGKILL cannot be caught."""
    for namespace in stale(NAMESPACES):
        _remove(namespace)


@contextmanager
def exit_on_signals() -> Iterator[None]:
    """Inside, the first SIGTERM, SIGINT or SIGHUP leaves by SystemExit, so that every clean-up runs; later ones do nothing."""

    def leave(number: int, frame: FrameType | None) -> None:
        for each in caught:
            signal.signal(each, signal.SIG_IGN)
        raise SystemExit(128 + number)

    caught = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    before = {number: signal.signal(number, leave) for number in caught}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _cable(namespace: str, interface: str, other: str, peer: str) -> None:
    ends = ("name", interface, "netns", namespace, "type", "veth", "peer", "name", peer, "netns", other)
    _run("ip", "link", "add", *ends)


def _shape(namespace: str, interface: str, rate: str) -> None:
    bucket = ("tbf", "rate", rate, "burst", str(burst(bits_per_second(rate))), "latency", "100ms")
    _run("tc", "-n", namespace, "qdisc", "add", "dev", interface, "root", *bucket)
    _run("ip", "-n", namespace, "link", "set", interface, "up")


def _remove(namespace: str) -> None:
    subprocess.run(["ip", "netns", "del", namespace], check=False, capture_output=True)


def _run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise OSError(f"`{' '.join(command)}` failed: {done.stderr.strip()}")
    return done.stdout
