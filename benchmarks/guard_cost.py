"""What an optimizer's checks of its model cost, in per cent of its step: 25 M parameters in 160 tensors, one worker.

    python benchmarks/guard_cost.py [--device cuda] [--params 25000000]

The checks are timed alone, many calls at a time, because a hundredth of a step disappears in the noise of whole steps.
Both figures are of one run on one machine. The comparisons between workers come at steps 1, 2, 4, 8, ... and are no part of
an ordinary step.
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


def seconds(call: Callable[[], object], times: int, device: torch.device) -> float:
    """Of one call: the median of several series."""
    found = []
    for _ in range(REPEATS):
        _wait(device)
        start = time.perf_counter()
        for _ in range(times):
            call()
        _wait(device)
        found.append((time.perf_counter() - start) / times)
    return statistics.median(found)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--params", type=int, default=25_000_000)
    asked = parser.parse_args()
    device = torch.device(asked.device)

    def parameters() -> list[Parameter]:
        return [Parameter(torch.ones(asked.params // TENSORS, device=device)) for _ in range(TENSORS)]

    print(f"{asked.params / 1e6:g} M parameters in {TENSORS} tensors on {device}, torch {torch.__version__}")
    print(f"{'optimizer':26}{'step ms':>9}{'checks ms':>11}{'share':>8}")
    for name, build in cases(parameters).items():
        optimizer = build()
        optimizer.flat.grad.fill_(1e-6)

        def checks(optimizer: FlatOptimizer = optimizer) -> None:
            optimizer.guard.check_model()
            optimizer.guard.written()

        for _ in range(16):
            optimizer.step()
        step, guard = seconds(optimizer.step, 16, device), seconds(checks, 200, device)
        print(f"{name:26}{step * 1e3:9.3f}{guard * 1e3:11.4f}{guard / step:8.2%}", flush=True)


if __name__ == "__main__":
    main()
