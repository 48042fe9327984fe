"""What the probe of `cser-ray doctor` takes of a step by the clock around its own calls, which a busy machine disturbs little.

    PYTHONPATH=$PWD python3 -m torch.distributed.run --standalone --nproc-per-node 1 benchmarks/doctor_in_place.py

A line for a loop that all-reduces its gradients itself and for DDP, on a CPU: the step, what the wrapped collectives take
longer than the collectives inside them, what the hook of a step takes, medians of 350 steps, and the share of both. What
the program runs slower afterwards, its caches being colder, is not in it; `doctor_overhead.py` has that, and chance.
"""

import math
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from doctor_overhead import KINDS, WIDTHS, begin, training
from torch.nn.parallel import DistributedDataParallel

from cser_ray.doctor.watch import StepWatch

STEPS, WARM_UP = 400, 50


class Clock:
    """Sums the seconds of the calls that it is put around."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def around(self, call: Callable[..., Any]) -> Callable[..., Any]:
        """The call, timed."""

        def timed(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            try:
                return call(*args, **kwargs)
            finally:
                self.seconds += time.perf_counter() - start

        return timed


def main() -> None:
    """Measure both kinds, and print."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    c10d = dist.distributed_c10d
    original = c10d.all_reduce
    for kind in KINDS:
        inside, outside, hook, whole = Clock(), Clock(), Clock(), Clock()
        step, model = training(kind, *WIDTHS["cpu"], torch.device("cpu"))
        step = whole.around(step)
        c10d.all_reduce = dist.all_reduce = inside.around(original)
        watch = StepWatch(Path("/nowhere"), math.inf)
        if isinstance(model, DistributedDataParallel):
            watch.replicas.modules.add(model)
        watch._stepped = hook.around(watch._stepped)  # type: ignore[method-assign]
        begin(watch)
        dist.all_reduce = outside.around(dist.all_reduce)
        rows = []
        for _ in range(STEPS):
            for clock in (inside, outside, hook, whole):
                clock.seconds = 0.0
            step()
            rows.append((whole.seconds, outside.seconds - inside.seconds, hook.seconds))
        step_s, wrapped, hooked = (statistics.median(column) for column in zip(*rows[WARM_UP:], strict=True))
        print(
            f"{kind}: {1e3 * step_s:.3g} ms a step, {1e6 * wrapped:.3g} us in wrapped collectives, {1e6 * hooked:.3g} us in "
            f"the hook: {(wrapped + hooked) / step_s:.2%}"
        )
        watch.remove()
        c10d.all_reduce = dist.all_reduce = original
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
