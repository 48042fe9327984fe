"""The command `cser-ray bench cluster`."""

import subprocess
import sys

import click

from cser_ray.commands.options import clear_errors


@click.command(context_settings={"ignore_unknown_options": True})
@click.option("--rate", default="1gbit", show_default=True, help="Rate of each host's link, as tc writes it.")
@click.option("--workers", type=int, default=2, show_default=True, help="Hosts, each a node of Ray.")
@click.option(
    "--device",
    type=click.Choice(["auto", "cpu", "cuda"]),
    default="auto",
    show_default=True,
    help="A GPU for each host where there are as many [auto], or one of the two.",
)
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
def cluster(rate: str, workers: int, device: str, command: tuple[str, ...]) -> None:
    """Run a command on a Ray cluster across hosts with shaped links, all on this machine.

    For instance: sudo cser-ray bench cluster --rate 100mbit -- cser-ray tune --distributed 2 --workers 2 --out RESULTS

    The hosts are network namespaces that share this machine's CPUs and GPUs out; the command runs on the first, the head.
    Says in the end what each has sent. Needs root and iproute2; nothing is left behind.
    """
    with clear_errors():
        from cser_ray.bench.hosts.namespaces import exit_on_signals, missing_rights
        from cser_ray.bench.hosts.ray_hosts import ray_hosts, shares

        if lacking := missing_rights():
            raise PermissionError(lacking)
        with exit_on_signals(), ray_hosts(shares(workers, device), rate) as nodes:
            before = [host.sent() for host in nodes.hosts]
            status = subprocess.run(nodes.command(*command), env=nodes.environment, check=False).returncode
            sent = [host.sent() - at for host, at in zip(nodes.hosts, before, strict=True)]
        click.echo("Sent over the links: " + ", ".join(f"{count / 1e6:.1f} MB" for count in sent), err=True)
    sys.exit(status)
