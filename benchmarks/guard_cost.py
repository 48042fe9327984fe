"""What an optimizer's checks of its model cost, in per cent of its step: 25 M parameters in 160 tensors, one worker.

    python benchmarks/guard_cost.py [--device cuda] [--params 25000000]

The checks are timed alone, many calls at a time, because a hundredth of a step disappears in the noise of whole steps.
All figures are of one run on one machine. On a GPU, where the processor runs ahead, "step" and "checks" are what the device
takes; "host" is what the checks take of the processor meanwhile, in microseconds. The comparisons between workers come at
steps 1, 2, 4, 8, ... and are no part of an ordinary step.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch.nn import Parameter

from cser_ray import CSER, GRBS
from cser_ray.communication.communicator import Communicator
from cser_ray.compressors import TopK
from cser_ray.optimizers import CSEA, SGD, DiLoCo, FlatOptimizer, LocalSGD

TENSORS, REPEATS = 160, 7


def cases(parameters: Callable[[], list[Parameter]]) -> dict[str, Callable[[], FlatOptimizer]]:
    alone = Communicator(group=None)
    c1, c2 = GRBS(16), GRBS(512)
    return {
        "sgd": lambda: SGD(parameters(), 1e-4, communicator=alone),
        "sgd, AdamW inside": lambda: SGD(parameters(), 1e-4, betas=(0.9, 0.95), communicator=alone),
        "local-sgd": lambda: LocalSGD(parameters(), 1e-4, reset_interval=16, communicator=alone),
        "csea": lambda: CSEA(parameters(), 1e-4, reset_compressor=GRBS(64), communicator=alone),
        "cser, implementation II": lambda: CSER(
            parameters(), 1e-4, reset_interval=16, reset_compressor=c1, gradient_compressor=c2, communicator=alone
        ),
        "cser, implementation I": lambda: CSER(
            parameters(), 1e-4, reset_interval=16, reset_compressor=TopK(64), communicator=alone
        ),
        "diloco": lambda: DiLoCo(parameters(), 1e-4, reset_interval=16, communicator=alone),
    }


def seconds(call: Callable[[], object], times: int, device: torch.device) -> tuple[float, float]:
    """Of one call: what the device takes, and the processor; the median of several series."""
    found = []
    load = torch.ones(8192, 8192, device=device, dtype=torch.bfloat16) if device.type == "cuda" else None
    for _ in range(REPEATS):
        if load is None:
            start = time.perf_counter()
            for _ in range(times):
                call()
            found.append(((time.perf_counter() - start) / times,) * 2)
            continue
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        torch.cuda.synchronize()
        for _ in range(64):  # half a millisecond each: the calls below are all enqueued before they begin
            torch.mm(load, load)
        begin.record()
        start = time.perf_counter()
        for _ in range(times):
            call()
        host = (time.perf_counter() - start) / times
        end.record()
        torch.cuda.synchronize()
        found.append((begin.elapsed_time(end) / times / 1e3, host))
    device_s, host_s = zip(*found, strict=True)
    return statistics.median(device_s), statistics.median(host_s)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--params", type=int, default=25_000_000)
    asked = parser.parse_args()
    device = torch.device(asked.device)

    def parameters() -> list[Parameter]:
        return [Parameter(torch.ones(asked.params // TENSORS, device=device)) for _ in range(TENSORS)]

    print(f"{asked.params / 1e6:g} M parameters in {TENSORS} tensors on {device}, torch {torch.__version__}")
    print(f"{'optimizer':26}{'step ms':>9}{'checks ms':>11}{'share':>8}{'host us':>9}")
    for name, build in cases(parameters).items():
        optimizer = build()
        optimizer.flat.grad.fill_(1e-6)

        def checks(optimizer: FlatOptimizer = optimizer) -> None:
            optimizer.guard.check_model(everything=False)
            optimizer.guard.note()

        for _ in range(16):
            optimizer.step()
        (step, _), (guard, host) = seconds(optimizer.step, 16, device), seconds(checks, 200, device)
        print(f"{name:26}{step * 1e3:9.3f}{guard * 1e3:11.4f}{guard / step:8.2%}{host * 1e6:9.1f}", flush=True)


if __name__ == "__main__":
    main()
