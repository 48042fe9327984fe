"""`cser-ray bench links`: hosts with shaped links, one process on each, and a row for every method.

All cases of a link run in one set of processes, because starting a process group costs more than most cases.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from multiprocessing import connection
from pathlib import Path
from typing import Any

import torch

from cser_ray.bench.hosts.namespaces import Host, linked_hosts, nccl_as_host
from cser_ray.bench.links.cases import Case, make_cases
from cser_ray.bench.links.peers import PEERS
from cser_ray.bench.links.rows import LinkRow, LinkSetting, make_row
from cser_ray.bench.links.training import check_case
from cser_ray.bench.links.windows import Phase
from cser_ray.bench.links.worker import Spec
from cser_ray.bench.report.provenance import commit, today
from cser_ray.bench.workloads import check_workload
from cser_ray.communication.links import bits_per_second

SECONDS = 0.8
"""About how long the windows of a case last, where the number of steps is not given."""
TIMEOUT = 300.0
"""Seconds after which a rank gives up a collective."""
LAST_WORDS = 12
"""Lines of a failed rank's output that are shown."""


@dataclass(frozen=True)
class Links:
    """What to measure: on each link of `rates`, the cases, with a worker a host, of `processes` processes each."""

    rates: tuple[str, ...]
    workers: int
    processes: int
    cases: tuple[Case, ...]
    model: str
    device: str
    steps: int | None = None

    def __post_init__(self) -> None:
        for rate in self.rates:
            bits_per_second(rate)
        if not 2 <= self.workers <= 64:
            raise ValueError(
                f"--workers {self.workers}: a link needs 2 workers or more, and one machine holds 64 at most"
            )
        if self.processes < 1:
            raise ValueError(f"--processes-per-worker {self.processes}: a worker has 1 process or more")
        if self.steps is not None and self.steps < 1:
            raise ValueError(f"--steps {self.steps}: at least 1 step must be measured")
        if self.device == "cuda" and len(gpus()) < self.ranks:
            raise ValueError(
                f"--workers {self.workers}: every process needs a GPU of its own and {len(gpus())} can be seen; "
                "take fewer workers, or --device cpu"
            )
        check_workload(self.model)
        for case in self.cases:
            check_case(case)

    @property
    def ranks(self) -> int:
        """Processes of all workers."""
        return self.workers * self.processes


def make_links(
    rates: Sequence[str],
    workers: int,
    processes: int,
    methods: Sequence[str],
    ratios: Sequence[float],
    model: str,
    optimizer: str,
    device: str,
    steps: int | None,
) -> Links:
    """The cases that users ask for, on their links; `device` "auto" takes GPUs where there are any."""
    if device == "auto":
        device = "cuda" if gpus() else "cpu"
    cases = make_cases(methods, ratios, {name: peer.takes_ratio for name, peer in PEERS.items()}, optimizer)
    return Links(tuple(rates), workers, processes, cases, model, device, steps)


def gpus() -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    seen = [str(i) for i in range(torch.cuda.device_count())]
    return seen if named is None else named.split(",")[: len(seen)]


def measure_link(links: Links, rate: str, progress: Callable[[int, Case], None]) -> tuple[list[LinkRow], str]:
    """The rows of one link; and why it ended early, or nothing.

    `progress` is told each case's number before it is waited for. What was measured before a rank failed is kept.
    """
    measured: list[tuple[Case, list[list[Phase]]]] = []
    hello: dict[str, Any] = {}
    current, failure = "at its start", ""
    try:
        with linked_hosts(links.workers, rate) as hosts, _ranks(links, hosts) as answers:
            hello = next(answers)[0]
            for number, case in enumerate(links.cases):
                current = f"in {case}"
                progress(number, case)
                measured.append((case, [_phases(answer) for answer in next(answers)]))
    except ChildProcessError as error:
        failure = f"{rate}, {current}: {error}"
    if not measured:
        return [], failure
    setting = LinkSetting(
        date=today(),
        commit=commit(),
        rate_bps=bits_per_second(rate),
        workers=links.workers,
        processes_per_worker=links.processes,
        model=links.model,
        **hello,
    )
    return [make_row(setting, case, ranks) for case, ranks in measured], failure


def _phases(answer: Any) -> list[Phase]:
    times = ("seconds", "local_seconds")
    return [Phase(**phase | {name: tuple(phase[name]) for name in times}) for phase in answer]


@contextmanager
def _ranks(links: Links, hosts: Sequence[Host]) -> Iterator[Iterator[list[Any]]]:
    """The processes of each host; gives their answers, line by line, in order of rank. All are killed at the end."""
    with tempfile.TemporaryDirectory(prefix="cser-ray-bench-") as folder:
        spec = Spec(
            links.cases, links.model, links.device, links.workers, links.processes, hosts[0].interface,
            f"{folder}/store", SECONDS, links.steps, TIMEOUT,
        )  # fmt: skip
        Path(folder, "spec.json").write_text(json.dumps(asdict(spec)))
        processes: list[subprocess.Popen[str]] = []
        logs = [Path(folder, f"rank{rank}.log") for rank in range(links.ranks)]
        try:
            for rank, log in enumerate(logs):
                host = hosts[rank // links.processes]
                with log.open("w") as errors:
                    process = subprocess.Popen(
                        host.command(
                            sys.executable, "-m", "cser_ray.bench.links.worker", f"{folder}/spec.json", str(rank)
                        ),
                        env=os.environ | _environment(links, rank, host),
                        stdin=subprocess.PIPE,
                        stdout=subprocess.PIPE,
                        stderr=errors,
                        text=True,
                        start_new_session=True,  # Ctrl-C is the parent's, who ends them in order
                    )
                processes.append(process)
            yield _answers(processes, logs)
        finally:
            for process in processes:
                process.kill()
                process.communicate()


def _environment(links: Links, rank: int, host: Host) -> dict[str, str]:
    fault = {"PYTHONFAULTHANDLER": "1"}  # the last words of a rank that crashes
    if links.device != "cuda":
        return fault | {"GLOO_SOCKET_IFNAME": host.interface, "CUDA_VISIBLE_DEVICES": ""}
    return fault | nccl_as_host(rank, host) | {"CUDA_VISIBLE_DEVICES": gpus()[rank]}


def _answers(processes: Sequence["subprocess.Popen[str]"], logs: Sequence[Path]) -> Iterator[list[Any]]:
    """A line of every rank, again and again; ChildProcessError, with its last words, as soon as one ends without.

    No rank is ever a line ahead: it waits for all others before it begins what its next line is about.
    """
    pipes = [process.stdout for process in processes if process.stdout is not None]
    while True:
        answers: dict[int, Any] = {}
        while len(answers) < len(pipes):
            waiting = {pipe.fileno(): rank for rank, pipe in enumerate(pipes) if rank not in answers}
            for ready in connection.wait(list(waiting)):
                rank = waiting[ready]  # type: ignore[index]
                line = pipes[rank].readline()
                if not line:
                    status = processes[rank].wait()
                    words = "\n".join(logs[rank].read_text().splitlines()[-LAST_WORDS:])
                    raise ChildProcessError(f"rank {rank} ended without an answer, with status {status}:\n{words}")
                answers[rank] = json.loads(line)
        yield [answers[rank] for rank in range(len(pipes))]
