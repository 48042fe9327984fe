"""Two hosts on this machine: network namespaces joined by a veth pair, each with an interface whose bytes are counted."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass(frozen=True)
class Host:
    """A network namespace with one interface."""

    namespace: str
    interface: str
    address: str

    def command(self, *arguments: str) -> list[str]:
        """The command that runs `arguments` on this host."""
        return ["ip", "netns", "exec", self.namespace, *arguments]

    def sent(self) -> int:
        """Bytes that have left by the interface, by its own counter, link-layer headers included."""
        path = f"/sys/class/net/{self.interface}/statistics/tx_bytes"
        return int(subprocess.run(self.command("cat", path), capture_output=True, text=True, check=True).stdout)


@contextmanager
def two_hosts(rate: str) -> Iterator[tuple[Host, Host]]:
    """Two hosts joined by a link of `rate` (as tc writes it, "100mbit") each way; removed afterwards."""
    hosts = [Host(f"cser{os.getpid()}{end}", f"v{os.getpid()}{end}", f"10.211.0.{end + 1}") for end in range(2)]
    try:
        for host in hosts:
            _ip("netns", "add", host.namespace)
        _ip("link", "add", hosts[0].interface, "type", "veth", "peer", "name", hosts[1].interface)
        for host in hosts:
            _ip("link", "set", host.interface, "netns", host.namespace)
            _ip("-n", host.namespace, "addr", "add", f"{host.address}/24", "dev", host.interface)
            for interface in ("lo", host.interface):
                _ip("-n", host.namespace, "link", "set", interface, "up")
            shape = ("qdisc", "add", "dev", host.interface, "root", "tbf", "rate", rate)
            subprocess.run(host.command("tc", *shape, "burst", "128kb", "latency", "100ms"), check=True)
        yield hosts[0], hosts[1]
    finally:
        for host in hosts:
            subprocess.run(["ip", "netns", "del", host.namespace], check=False, capture_output=True)


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True)
