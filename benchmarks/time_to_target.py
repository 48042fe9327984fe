"""Held-out loss against seconds over a real shaped link, for torch's DDP with hooks and for methods of ours.

    sudo python benchmarks/time_to_target.py --rate 100mbit --out benchmarks/results/time_to_target_cpu.csv

First the curves are predicted: losses of virtual workers, at the learning rate that was best for them, against the time
of a step as it is measured on the link. Then every method is trained there with a process a host, and compared with its
prediction. Evaluation does not count as time. DDP with the bf16 hook is predicted by `sgd-bf16`; for PowerSGD there is no
virtual worker: it takes sgd's learning rate and has no prediction.
"""

import argparse
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import torch
from target_ranks import LR_OF, on_hosts

from cser_ray.bench.hosts.namespaces import exit_on_signals, linked_hosts
from cser_ray.bench.links.run import gpus
from cser_ray.bench.report.provenance import commit, hardware, today
from cser_ray.bench.report.table import aligned, append_csv, check_csv, names_of
from cser_ray.communication.communicator import Communicator
from cser_ray.config import RunConfig, config_at
from cser_ray.train.loop import train
from cser_ray.train.record import TrialIdentity

UNPREDICTED = ("powersgd-1",)
METHODS = "ddp,ddp-bf16,powersgd-1,local-sgd@64,diloco@64,csea@64,cser-pl@64,cser@64"
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


def configuration(options: argparse.Namespace, method: str) -> RunConfig:
    """Of "method" or "method@R_C"."""
    name, _, given = method.partition("@")
    name = LR_OF.get(name, name)
    ratio = float(given or 1)
    shared = {key: getattr(options, key) for key in ("task", "workers", "steps", "evaluations")}
    return config_at(name, ratio, **shared)


def virtual(config: RunConfig, lrs: Sequence[float], device: torch.device) -> tuple[float, list[tuple[int, float]]]:
    """The best learning rate of virtual workers, and their curve at it: (step, validation loss)."""
    curves: dict[float, list[tuple[int, float]]] = {lr: [] for lr in lrs}

    def report(epochs: object, _: object) -> None:
        for lr, row in zip(lrs, epochs, strict=True):  # type: ignore[call-overload]
            curves[lr].append((row.step, math.inf if row.val_loss is None else row.val_loss))

    configs = [replace(config, lr=lr) for lr in lrs]
    train(configs, Communicator(config.workers, group=None), device, TrialIdentity("target", config.method), report)
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


def render(points: Sequence[Point], steps_s: dict[str, float]) -> str:
    """A line for each method: end of the run, predicted and measured, and time to the target."""
    first = points[0]
    ends = {(p.method, p.kind): p for p in points}
    dense = [p.val_loss for (method, kind), p in ends.items() if kind == "measured" and method in LR_OF]
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
    return f"{title}\n{aligned(head, rows)}"


def to_target(points: Sequence[Point], target: float) -> float | None:
    """Seconds at which a curve first reaches the target, straight lines between its points."""
    if points[0].val_loss <= target:
        return points[0].seconds
    for a, b in pairwise(points):
        if a.val_loss > target >= b.val_loss:
            return a.seconds + (b.seconds - a.seconds) * (a.val_loss - target) / (a.val_loss - b.val_loss)
    return None


if __name__ == "__main__":
    main()
