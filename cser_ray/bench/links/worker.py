"""One rank of `cser-ray bench links`: runs every case of one link and prints a line of JSON for each."""

import gc
import json
import os
import shutil
import sys
import threading
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import TextIO

import torch
import torch.distributed as dist

from cser_ray.bench.hosts.namespaces import counter
from cser_ray.bench.links.cases import Case
from cser_ray.bench.links.measuring import Rank, make_baseline, measure_phases
from cser_ray.bench.links.peers import PEERS
from cser_ray.bench.links.training import Training, ours
from cser_ray.bench.report.provenance import hardware
from cser_ray.bench.workloads import Workload, make_workload
from cser_ray.communication.communicator import Communicator
from cser_ray.communication.host_communicator import HostCommunicator


@dataclass(frozen=True)
class Spec:
    """What every rank of one link has to measure; the first case is the baseline."""

    cases: tuple[Case, ...]
    model: str
    device: str
    workers: int
    processes: int
    """Of each worker."""
    interface: str
    store: str
    """The file through which ranks find each other; it need not be on any of the hosts."""
    seconds: float
    """About how long a case's windows last, if `steps` does not say how many steps they have."""
    steps: int | None
    timeout: float
    """Seconds after which a collective is given up."""


def main(path: str, rank: int) -> None:
    """Run the cases of the Spec at `path`; results go to what was standard output, all other output to standard error."""
    with open(os.dup(1), "w", buffering=1) as results:
        os.dup2(2, 1)  # libraries print too
        threading.Thread(target=_end_with_parent, args=(Path(path).parent,), daemon=True).start()
        given = json.loads(Path(path).read_text())
        spec = Spec(**given | {"cases": tuple(Case(**case) for case in given["cases"])})
        _run(spec, rank, results)


def _run(spec: Spec, rank: int, results: TextIO) -> None:
    cuda, ranks = spec.device == "cuda", spec.workers * spec.processes
    torch.backends.cudnn.benchmark = cuda
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // ranks))
    dist.init_process_group(
        "nccl" if cuda else "gloo",
        init_method=f"file://{spec.store}",
        rank=rank,
        world_size=ranks,
        timeout=timedelta(seconds=spec.timeout),
        device_id=torch.device("cuda", 0) if cuda else None,
    )
    here = Rank(torch.device(spec.device), counter(spec.interface), spec.seconds, spec.steps)
    workload = make_workload(spec.model, here.device, rank)
    hello = {
        "hardware": hardware(spec.device, ranks),
        "torch": torch.__version__,
        "backend": dist.get_backend(),
        "params": workload.params,
    }
    print(json.dumps(hello), file=results)
    communicator = Communicator(1) if spec.processes == 1 else HostCommunicator(spec.processes)
    local = make_baseline(ours(spec.cases[0], workload, communicator), here)
    for case in spec.cases:
        here.agree()
        training = _build(case, workload, communicator)
        phases = measure_phases(training, local, here)
        print(json.dumps([asdict(phase) for phase in phases]), file=results)
        training.close()
        del training
        gc.collect()  # before the next model: optimizers and hooks refer to each other
    here.agree()
    dist.destroy_process_group()


def _build(case: Case, workload: Workload, communicator: Communicator) -> Training:
    """A peer joins all processes, as torch's data parallelism does; a method of ours joins workers."""
    if case.method in PEERS:
        return PEERS[case.method].build(case, workload)
    return ours(case, workload, communicator)


def _end_with_parent(folder: Path) -> None:
    """End this process and remove the folder when the parent has ended, which closes standard input."""
    sys.stdin.read()
    shutil.rmtree(folder, ignore_errors=True)
    os._exit(1)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
