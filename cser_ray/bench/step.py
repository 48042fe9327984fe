"""What the optimizer's step alone costs, beside torch's fused optimizer and the time that memory traffic needs at least.

One worker, no group: everything but the wire. On a GPU the steps are timed behind other work that keeps it busy, so that
the device's own time is seen; what the processor needs to enqueue a step is a column of its own.
"""

import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch.nn import Parameter, ParameterList

from cser_ray.bench.links.cases import Case, make_cases
from cser_ray.bench.links.training import build_optimizer
from cser_ray.bench.report.provenance import commit, hardware, today
from cser_ray.bench.report.table import aligned, fixed
from cser_ray.compressors.text import parse
from cser_ray.optimizers import CSEA, FlatOptimizer
from cser_ray.structure import number

TRAFFIC = {"sgd": 20, "adamw": 28}
"""Bytes that a step reads and writes for a parameter of 4 bytes: x, g and one or two moments, all but g written again."""
STATE = {"sgd": 12, "adamw": 16}
"""Bytes held for a parameter: itself, its gradient, one or two moments."""
TENSORS = 160
"""Parameters are split into so many tensors, as a ResNet-50's are."""
TIMINGS = 9
WORKERS = 8
"""n for which a compressor meets its ratio, though one worker steps here: messages that are gathered grow with n."""


@dataclass(frozen=True)
class StepRow:
    """One method's step. Times in milliseconds, medians of TIMINGS; `over_torch` by the device's time."""

    date: str
    commit: str
    hardware: str
    torch: str
    params: int
    optimizer: str
    method: str
    ratio: float | None
    reset_delay: int | None
    step_ms: float
    host_ms: float
    over_torch: float
    floor_ms: float
    """TRAFFIC at the speed at which this device copies memory."""
    bytes_held: int | None
    """Peak GPU memory, parameters and gradients included."""
    over_state: float | None
    """bytes_held over STATE."""
    waits: float | None
    """On a GPU: how often a step makes the processor wait for the device."""


@dataclass(frozen=True)
class Sent:
    """CSEA as implementation I with a compressor, which meets the ratio among `WORKERS` workers."""

    compressor: str
    ratio: float

    @property
    def name(self) -> str:
        """As `method` of a row has it."""
        return f"csea I {self.compressor}"


def measure(
    params: int,
    optimizer: str,
    methods: Sequence[str],
    ratios: Sequence[float],
    device: str,
    compressors: Sequence[str] = (),
) -> list[StepRow]:
    """Rows for torch's fused optimizer and every method at every ratio, on "cpu" or "cuda".

    Then, for every text of `compressors` and every ratio, CSEA as implementation I, GRBS before the others.
    """
    on = torch.device(device)
    floor = params * TRAFFIC[optimizer] / _copy_speed(on) * 1e3
    torchs = _measured(partial(_torchs, params, optimizer, on), on)
    rows = []
    cases = [case for case in dict.fromkeys(make_cases(methods, ratios, {}, optimizer)) if case.ratio is not None]
    texts = list(dict.fromkeys(["grbs", *compressors])) if compressors else []
    sent = [Sent(text, ratio) for ratio in ratios for text in texts]
    for case in (None, *cases, *sent):
        if case is None:
            step_ms, host_ms, held, waits = torchs
        elif isinstance(case, Sent):
            step_ms, host_ms, held, waits = _measured(partial(_sends, params, case, optimizer, on), on)
        else:
            step_ms, host_ms, held, waits = _measured(partial(_ours, params, case, on), on)
        rows.append(
            StepRow(
                today(),
                commit(),
                hardware(device),
                torch.__version__,
                params,
                optimizer,
                "torch fused" if case is None else case.name if isinstance(case, Sent) else case.method,
                None if case is None else case.ratio,
                case.reset_delay if isinstance(case, Case) else None,
                step_ms,
                host_ms,
                step_ms / torchs[0],
                floor,
                held,
                None if held is None else held / (params * STATE[optimizer]),
                waits,
            )
        )
    return rows


def render(rows: Sequence[StepRow]) -> str:
    """The rows as a table."""
    first = rows[0]
    head = (
        *("method", "R_C", "step ms", "over torch", "over floor", "over grbs I", "host ms", "memory", "over state"),
        "waits",
    )
    blocks = {row.ratio: row.step_ms for row in rows if row.method == Sent("grbs", 1).name}
    lines = [
        (
            row.method + (f"+delay{row.reset_delay}" if row.reset_delay else ""),
            "" if row.ratio is None else number(row.ratio),
            fixed(row.step_ms, 3),
            fixed(row.over_torch, 3),
            fixed(row.step_ms / row.floor_ms, 2),
            fixed(row.step_ms / blocks[row.ratio], 3) if row.ratio in blocks and " I " in row.method else "",
            fixed(row.host_ms, 3),
            "" if row.bytes_held is None else f"{row.bytes_held / 1e9:.3f} GB",
            fixed(row.over_state, 3),
            fixed(row.waits, 2),
        )
        for row in rows
    ]
    title = f"{first.params / 1e6:g} M parameters, {first.optimizer}, {first.hardware}, torch {first.torch}; floor "
    return f"{title}{first.floor_ms:.3f} ms\n{aligned(head, lines)}"


def _tensors(params: int, device: torch.device) -> list[Parameter]:
    size = -(-params // TENSORS)
    sizes = [min(size, params - start) for start in range(0, params, size)]
    return [Parameter(torch.ones(count, device=device)) for count in sizes]


def _torchs(params: int, optimizer: str, device: torch.device) -> torch.optim.Optimizer:
    parameters = _tensors(params, device)
    for p in parameters:
        p.grad = torch.full_like(p, 1e-3)
    if optimizer == "adamw":
        return torch.optim.AdamW(parameters, 1e-4, (0.9, 0.95), weight_decay=0.1, fused=True)
    return torch.optim.SGD(parameters, 1e-4, 0.9, weight_decay=5e-4, nesterov=True, fused=True)


def _ours(params: int, case: Case, device: torch.device) -> FlatOptimizer:
    optimizer = build_optimizer(case, ParameterList(_tensors(params, device)))
    optimizer.flat.grad.fill_(1e-3)
    return optimizer


def _sends(params: int, sent: Sent, optimizer: str, device: torch.device) -> FlatOptimizer:
    compressor = parse(sent.compressor).at(sent.ratio, d=params, n=WORKERS)
    betas = {"betas": (0.9, 0.95)} if optimizer == "adamw" else {}
    made = CSEA(_tensors(params, device), 1e-4, reset_compressor=compressor, implementation="I", **betas)  # type: ignore[arg-type]
    made.flat.grad.fill_(1e-3)
    # an error that differs in every coordinate, so that what picks by value has something to choose from
    assert made.e is not None
    made.e.normal_(generator=torch.Generator(device).manual_seed(0))
    return made


def _measured(
    build: Callable[[], torch.optim.Optimizer], device: torch.device
) -> tuple[float, float, int | None, float | None]:
    """(milliseconds of a step on the device, on the processor, peak bytes held, waits for the device)."""
    gpu = device.type == "cuda"
    if gpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    optimizer = build()
    interval = getattr(optimizer, "reset_interval", 1)
    steps = interval * max(1, round(16 / interval))
    for _ in range(max(steps, 3)):
        optimizer.step()
    held = torch.cuda.max_memory_allocated() - before if gpu else None
    waits = _waits(optimizer, steps) if gpu else None
    times, host = [], []
    load = torch.ones(8192, 8192, device=device, dtype=torch.bfloat16) if gpu else None
    for _ in range(TIMINGS):
        if load is None:
            start = time.perf_counter()
            for _ in range(steps):
                optimizer.step()
            times.append((time.perf_counter() - start) / steps * 1e3)
            host.append(times[-1])
            continue
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        torch.cuda.synchronize()
        for _ in range(4 * steps):  # about a millisecond each: the steps below are all enqueued before they begin
            torch.mm(load, load)
        begin.record()
        start = time.perf_counter()
        for _ in range(steps):
            optimizer.step()
        host.append((time.perf_counter() - start) / steps * 1e3)
        end.record()
        torch.cuda.synchronize()
        times.append(begin.elapsed_time(end) / steps)
    return statistics.median(times), statistics.median(host), held, waits


def _waits(optimizer: torch.optim.Optimizer, steps: int) -> float:
    """Synchronising calls a step, as `torch.cuda.set_sync_debug_mode` reports them."""
    mode = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for _ in range(steps):
                optimizer.step()
    finally:
        torch.cuda.set_sync_debug_mode(mode)
    return sum("synchroniz" in str(warning.message) for warning in caught) / steps


def _copy_speed(device: torch.device) -> float:
    """Bytes a second, read and written, of a copy far larger than any cache."""
    source = torch.ones(1 << 28 if device.type == "cuda" else 1 << 25, device=device)
    target = torch.empty_like(source)
    best = float("inf")
    for _ in range(8):
        if device.type == "cuda":
            torch.cuda.synchronize()
        start = time.perf_counter()
        target.copy_(source)
        if device.type == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - start)
    return 2 * source.numel() * source.element_size() / best
