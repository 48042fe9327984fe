"""Held-out loss against seconds over a real shaped link, for torch's DDP with hooks and for methods of ours.

    sudo python benchmarks/time_to_target.py --rate 100mbit --out benchmarks/results/time_to_target_cpu.csv

First the curves are predicted: losses of virtual workers, at the learning rate that was best for them, against the time
of a step as it is measured on the link. Then every method is trained there with a process a host, and compared with its
prediction. Evaluation does not count as time. DDP with the bf16 hook is predicted by `sgd-bf16`; for PowerSGD there is no
virtual worker: it takes sgd's learning rate and has no prediction.
"""

import argparse
import copy
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks, powerSGD_hook
from torch.nn.parallel import DistributedDataParallel

from cser_ray.bench.hosts import exit_on_signals, linked_hosts
from cser_ray.bench.links import TWO_HOSTS, gpus
from cser_ray.bench.peers import OWN_BUFFERS
from cser_ray.bench.provenance import commit, hardware, today
from cser_ray.bench.table import append_csv, check_csv, columns, names_of
from cser_ray.budget import structure_for
from cser_ray.communicator import Communicator
from cser_ray.tasks.base import losses
from cser_ray.train.config import RunConfig
from cser_ray.train.evaluation import place
from cser_ray.train.loop import Trial, train
from cser_ray.train.record import Identity, Record

PEERS = {"ddp": "sgd", "ddp-bf16": "sgd-bf16", "powersgd-1": "sgd"}
"""Peer -> the method of ours whose learning rate it takes, and whose virtual workers predict it."""
UNPREDICTED = ("powersgd-1",)
METHODS = "ddp,ddp-bf16,powersgd-1,local-sgd@64,diloco@64,csea@64,cser-pl@64,cser@64"
TIMED = 256
"""Steps, or an interval where that is longer, over which a method's step time is taken before the run."""
TARGET = 1.05
"""The target is the last loss of the best dense peer, times this."""


@dataclass(frozen=True)
class Point:
    """One evaluation of one curve."""

    date: str
    commit: str
    hardware: str
    torch: str
    task: str
    rate: str
    workers: int
    method: str
    ratio: float
    lr: float
    kind: str
    """"predicted" or "measured"."""
    step: int
    seconds: float
    val_loss: float


class Peer(Trial):
    """The same data, schedule and evaluation, with DistributedDataParallel and torch's SGD in place of our optimizer."""

    def __init__(self, name: str, config: RunConfig, device: torch.device):
        super().__init__([config], Communicator(1), device)
        self.replica = copy.deepcopy(self.workers.module).train()
        self.wrapped = DistributedDataParallel(self.replica, gradient_as_bucket_view=True, **OWN_BUFFERS)
        if name == "ddp-bf16":
            self.wrapped.register_comm_hook(None, default_hooks.bf16_compress_hook)
        if name == "powersgd-1":
            state = powerSGD_hook.PowerSGDState(None, matrix_approximation_rank=1, start_powerSGD_iter=2)
            self.wrapped.register_comm_hook(state, powerSGD_hook.powerSGD_hook)
        self.sgd = torch.optim.SGD(
            self.replica.parameters(), config.lr, config.momentum, weight_decay=config.weight_decay, nesterov=True
        )

    def step(self) -> Tensor:
        """As Trial's."""
        self.t += 1
        for group in self.sgd.param_groups:
            group["lr"] = self.config.lr * self.config.rate(self.t)
        self.sgd.zero_grad()
        inputs, targets = self.samples.batch(self.shards.indices(self.t, self.device), self.generators)
        inputs, targets = place(inputs, self.device, torch.float32)[0], targets.to(self.device)
        loss = losses(self.wrapped(inputs)[None], targets).mean()
        loss.backward()  # type: ignore[no-untyped-call]
        self.sgd.step()
        return loss.detach()[None]

    def publish(self) -> None:
        """Put the trained values where evaluation looks for them."""
        with torch.no_grad():
            for name, p in self.replica.named_parameters():
                self.workers.parameters[name].copy_(p[None])


def configuration(options: argparse.Namespace, method: str) -> RunConfig:
    """Of "method" or "method@R_C"."""
    name, _, given = method.partition("@")
    name = PEERS.get(name, name)
    ratio = float(given) if given else {"sgd": 1.0, "sgd-bf16": 2.0}[name]
    structure = structure_for(name, ratio)
    return RunConfig(
        task=options.task,
        method=name,
        ratio=ratio,
        reset_interval=structure.reset_interval,
        reset_ratio=structure.reset_ratio,
        gradient_ratio=structure.gradient_ratio,
        workers=options.workers,
        steps=options.steps,
        evaluations=options.evaluations,
    )


def virtual(config: RunConfig, lrs: Sequence[float], device: torch.device) -> tuple[float, list[tuple[int, float]]]:
    """The best learning rate of virtual workers, and their curve at it: (step, validation loss)."""
    curves: dict[float, list[tuple[int, float]]] = {lr: [] for lr in lrs}

    def report(epochs: object, _: object) -> None:
        for lr, row in zip(lrs, epochs, strict=True):  # type: ignore[call-overload]
            curves[lr].append((row.step, math.inf if row.val_loss is None else row.val_loss))

    configs = [replace(config, lr=lr) for lr in lrs]
    train(configs, Communicator(config.workers, group=None), device, Identity("target", config.method), report)
    best = min(lrs, key=lambda lr: curves[lr][-1][1] if math.isfinite(curves[lr][-1][1]) else math.inf)
    return best, curves[best]


def main() -> None:
    """Predict, run, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", default="pytext")
    parser.add_argument("--rate", default="100mbit")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--steps", type=int, default=1024)
    parser.add_argument("--evaluations", type=int, default=8)
    parser.add_argument("--lrs", default=".1,.2,.5,1")
    parser.add_argument("--methods", default=METHODS)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    if options.out:
        check_csv(options.out, names_of(Point))
    gpu = len(gpus()) >= options.workers
    device = torch.device("cuda" if gpu else "cpu")
    if not gpu:
        torch.set_num_threads(1)
    methods = options.methods.split(",")
    plan, curves = {}, {}
    known: dict[RunConfig, tuple[float, list[tuple[int, float]]]] = {}
    for method in methods:
        config = configuration(options, method)
        if config not in known:
            known[config] = virtual(config, [float(x) for x in options.lrs.split(",")], device)
        lr, curves[method] = known[config]
        plan[method] = replace(config, lr=lr)
        print(f"{method}: lr {lr:g}, predicted loss {curves[method][-1][1]:.3f}", file=sys.stderr)
    where = (today(), commit(), hardware(device.type, options.workers if gpu else 1), torch.__version__)
    points, steps_s = [], {}
    with exit_on_signals(), linked_hosts(options.workers, options.rate) as hosts:
        for answer in on_hosts(hosts, plan, gpu):
            method, config = answer["method"], plan[answer["method"]]
            common = (*where, options.task, options.rate, options.workers, method, config.ratio, config.lr)
            if "step_s" in answer:
                steps_s[method] = answer["step_s"]
                if method not in UNPREDICTED:
                    points += [Point(*common, "predicted", t, t * answer["step_s"], loss) for t, loss in curves[method]]
                continue
            points += [Point(*common, "measured", *point) for point in answer["points"]]
            print(f"{method}: {answer['points'][-1]}", file=sys.stderr)
    if options.out:
        append_csv(options.out, points)
    print(render(points, steps_s))


def on_hosts(hosts: Sequence, plan: dict[str, RunConfig], gpu: bool) -> Iterator[dict]:  # type: ignore[type-arg]
    """The lines that rank 0 prints; the processes end with this iterator."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "plan.json")
        path.write_text(json.dumps({method: asdict(config) for method, config in plan.items()}))
        ranks = []
        try:
            for rank, host in enumerate(hosts):
                given = {"GLOO_SOCKET_IFNAME": host.interface, "OMP_NUM_THREADS": "1"}
                if gpu:
                    given |= TWO_HOSTS | {"NCCL_HOSTID": f"host{rank}", "NCCL_SOCKET_IFNAME": host.interface}
                given["CUDA_VISIBLE_DEVICES"] = gpus()[rank] if gpu else ""
                command = host.command(sys.executable, __file__, str(path), str(rank))
                ranks.append(subprocess.Popen(command, env=os.environ | given, stdout=subprocess.PIPE, text=True))
            assert ranks[0].stdout is not None
            for line in ranks[0].stdout:
                yield json.loads(line)
            for process in ranks:
                if process.wait():
                    raise SystemExit(f"A process ended with status {process.returncode}")
        finally:
            for process in ranks:
                process.kill()
                process.communicate()


def worker(path: Path, rank: int) -> None:
    """One host: of each method the step time first, then the training."""
    plan = {method: RunConfig(**values) for method, values in json.loads(path.read_text()).items()}
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.set_num_threads(1)
    workers = next(iter(plan.values())).workers
    dist.init_process_group(
        "nccl" if device.type == "cuda" else "gloo", init_method=f"file://{path.parent}/store", rank=rank,
        world_size=workers,
    )  # fmt: skip
    for method, config in plan.items():
        name = method.partition("@")[0]
        for full in (False, True):
            trial = Peer(name, config, device) if name in PEERS else Trial([config], Communicator(1), device)
            found = {"points": curve(trial)} if full else {"step_s": step_time(trial)}
            if rank == 0:
                print(json.dumps({"method": method} | found), flush=True)
            dist.barrier()
    dist.destroy_process_group()


def step_time(trial: Trial) -> float:
    """Mean seconds of a step over whole intervals of TIMED steps or more, after an interval to warm up."""
    interval = trial.config.reset_interval
    count = interval * math.ceil(TIMED / interval)
    for _ in range(max(interval, 16)):
        trial.step()
    settle(trial.device)
    start = time.perf_counter()
    for _ in range(count):
        trial.step()
    settle(trial.device)
    return (time.perf_counter() - start) / count


def curve(trial: Trial) -> list[tuple[int, float, float]]:
    """(step, seconds of training, validation loss) of a whole training."""
    record = Record(trial, Identity("target", trial.config.method))
    steps, found = trial.config.run_steps, []
    due = {math.ceil(steps * (k + 1) / trial.config.evaluations) for k in range(trial.config.evaluations)}
    for t in range(1, steps + 1):
        trial.step()
        if t in due:
            settle(trial.device)
            if isinstance(trial, Peer):
                trial.publish()
            record.evaluate(last=t == steps)
            row = record.epoch_rows[0]
            found.append((t, (row.compute_s or 0.0) + (row.comm_s or 0.0), row.val_loss or math.nan))
    return found


def settle(device: torch.device) -> None:
    """Until the device has done what it was told, on every host."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    dist.barrier()


def render(points: Sequence[Point], steps_s: dict[str, float]) -> str:
    """A line for each method: end of the run, predicted and measured, and time to the target."""
    first = points[0]
    ends = {(p.method, p.kind): p for p in points}
    dense = [p.val_loss for (method, kind), p in ends.items() if kind == "measured" and method in PEERS]
    target = TARGET * min(dense)
    rows = []
    for method, step_s in steps_s.items():
        end, expected = ends[method, "measured"], ends.get((method, "predicted"))
        reached = to_target([p for p in points if (p.method, p.kind) == (method, "measured")], target)
        rows.append(
            (
                method,
                f"{end.lr:g}",
                f"{1e3 * step_s:.2f}",
                f"{end.seconds:.1f}",
                f"{expected.seconds / end.seconds - 1:+.1%}" if expected else "",
                f"{end.val_loss:.3f}",
                f"{expected.val_loss / end.val_loss - 1:+.1%}" if expected else "",
                "never" if reached is None else f"{reached:.1f}",
            )
        )
    head = ("method", "lr", "step ms", "end s", "predicted", "end loss", "predicted", f"s to {target:.3f}")
    title = f"{first.task}, {first.workers} workers over {first.rate}, {first.hardware}, torch {first.torch}"
    return f"{title}\n{columns(head, rows)}"


def to_target(points: Sequence[Point], target: float) -> float | None:
    """Seconds at which a curve first reaches the target, straight lines between its points."""
    if points[0].val_loss <= target:
        return points[0].seconds
    for a, b in pairwise(points):
        if a.val_loss > target >= b.val_loss:
            return a.seconds + (b.seconds - a.seconds) * (a.val_loss - target) / (a.val_loss - b.val_loss)
    return None


if __name__ == "__main__":
    if len(sys.argv) == 3 and sys.argv[1].endswith("plan.json"):
        worker(Path(sys.argv[1]), int(sys.argv[2]))
    else:
        main()
