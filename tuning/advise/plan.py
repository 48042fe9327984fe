"""`cser-ray plan`: a plan from the user's settings and from measurements, which says where each of its numbers is from."""

import importlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from cser_ray.communication.links import bits_per_second
from cser_ray.store.read import read_history
from cser_ray.structure import number
from tuning.advise.advice import Recommendation, recommend
from tuning.advise.calibration import FEWEST_TO_CHECK, check, fit, read_links, unseen
from tuning.advise.constants import FITTED, Constants
from tuning.advise.learned import MAX_LOSS, TARGET_FACTOR, Learned, learned
from tuning.advise.lines import PLANNED, Line, leaving, lines_of
from tuning.advise.measure import Measured, measure_network, step_of
from tuning.advise.peers import MATRIX_SIDE
from tuning.advise.present import Present, anchored, with_present
from tuning.advise.step_time import Job
from tuning.compare.selection import read_chosen

if TYPE_CHECKING:
    from torch import nn

RATIOS = (8.0, 32.0, 256.0, 1024.0)
"""Ratios planned for where neither the user nor a study names any."""
Matrices = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Origins:
    """Where a plan's numbers are from, a sentence each."""

    given: list[str] = field(default_factory=list)
    measured: list[str] = field(default_factory=list)
    assumed: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Plan:
    """An answer and what it rests on. `leaving`: see `tuning.advise.lines.leaving`."""

    job: Job
    constants: Constants | None
    """Of the model of time; None where nothing is sent."""
    recommendation: Recommendation
    lines: tuple[Line, ...]
    leaving: Mapping[str, Mapping[str, float | None]]
    skipped: tuple[str, ...]
    """Why a method is missing at a ratio."""
    origins: Origins
    present: Present | None = None
    """The program as it runs, where one was watched; its line is measured."""


def make_plan(
    settings: Mapping[str, Any], watched: Measured | None = None, present: Present | None = None
) -> Plan | None:
    """The plan for the settings of `cser-ray plan`; None on ranks of torchrun other than 0, which only help to measure.

    `watched`: the link, where `cser-ray doctor` has measured it and what the settings say; they then say nothing of a link.
    `present`: besides, the program as it runs on that link, which all predictions are then anchored to.
    Raises ValueError where something is missing, given twice, or cannot be measured.
    """
    origins = Origins()
    params, step_s, matrices = _subject(settings, origins)
    if watched is not None:
        origins = Origins(measured=[*origins.given, *origins.measured])
    link = _link(settings, origins) if watched is None else _said(watched, origins)
    if link is None:
        return None
    workers, rate, latency_s, backend = link
    k = settings.get("processes_per_worker", 1)
    link_measured = watched is not None or bool(settings.get("measure"))
    job = Job(params, step_s, workers, rate, latency_s, link_measured, matrices, k)
    if workers == 1:
        return Plan(job, None, recommend(job, (), None), (), {}, (), origins)
    constants = _constants(settings, backend, origins)
    study = _study(settings, job, origins)
    methods = settings.get("methods") or PLANNED
    ratios = settings.get("ratios") or (study.ratios if study else ()) or RATIOS
    hidden = constants.hidden
    if present is not None:
        job, constants = anchored(present, job, constants)
        _anchor(present, job, origins)
    lines, skipped = lines_of(job, constants, methods, sorted(ratios), study)
    if all(line.ratio is None for line in lines):
        raise ValueError(f"no method is left to plan with: {skipped[0]}; name one with a ratio, as local-sgd or csea")
    if present is not None:
        lines = with_present(present, job, lines)
    _assume(job, constants, study, origins, hidden_known=constants.hidden != hidden)
    max_loss = settings.get("max_loss", MAX_LOSS if study is None else study.usual_loss)
    answer = recommend(job, lines, study, max_loss, present)
    return Plan(
        job, constants, answer, tuple(lines), leaving(job, constants, methods), tuple(skipped), origins, present
    )


def _subject(settings: Mapping[str, Any], origins: Origins) -> tuple[int, float, Matrices | None]:
    """(d, seconds of a step, shapes), given or counted; a task's step is timed here where it is not given."""
    params, step_ms, task, model = map(settings.get, ("params", "step_ms", "task", "model"))
    if (params is None) == (task is None and model is None):
        raise ValueError("Give --params N, or a model to count them of: --task NAME, or --model module.path:factory")
    if step_ms is None and task is None:
        raise ValueError(
            "Give --step-ms, the milliseconds of one step without communication; only a --task can be timed"
        )
    if step_ms is not None:
        origins.given.append(f"{step_ms:g} ms a step without communication")
    if params is not None:
        assert step_ms is not None
        origins.given.append(f"{params:,} parameters")
        return params, step_ms / 1e3, None
    module = _task_module(settings) if task is not None else module_of(str(model))
    step_s = _timed(settings, origins) if step_ms is None else step_ms / 1e3
    shapes = [p.shape for p in module.parameters() if p.requires_grad]
    params = sum(shape.numel() for shape in shapes)
    origins.measured.append(f"{params:,} parameters, counted of {task or model}")
    return params, step_s, tuple((s[0], s.numel() // s[0]) if len(s) else (1, 1) for s in shapes)


def _task_module(settings: Mapping[str, Any]) -> "nn.Module":
    from cser_ray.tasks import make_task

    return make_task(settings["task"], **_task_options(settings)).model()


def _task_options(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {name: settings[name] for name in ("model", "data_dir") if name in settings}


def _timed(settings: Mapping[str, Any], origins: Origins) -> float:
    """Seconds of the task's step on this machine."""
    step_s, device = step_of(settings["task"], settings.get("batch_size"), **_task_options(settings))
    origins.measured.append(
        f"{1e3 * step_s:.3g} ms a step of {settings['task']}, one worker alone on this machine's {device}"
    )
    return step_s


def module_of(name: str) -> "nn.Module":
    """The model that "module.path:factory" makes; ValueError saying what failed."""
    path, _, factory = name.partition(":")
    try:
        made = getattr(importlib.import_module(path), factory)()
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise ValueError(
            f"the model {name!r} cannot be made ({error}): name a function without arguments that returns a module, as "
            "module.path:factory, from a module on PYTHONPATH; an image task's model goes with --task"
        ) from error
    return made  # type: ignore[no-any-return]


def rate_of(text: str) -> float:
    """Bits a second of "10gbit", as tc writes it, or of a plain number; ValueError otherwise."""
    return float(text) if re.fullmatch(r"[\d.]+(e\+?\d+)?", text) else bits_per_second(text)


def _link(settings: Mapping[str, Any], origins: Origins) -> tuple[int, float, float | None, str] | None:
    """(workers, rate, latency of a small collective, backend); None on ranks of torchrun other than 0."""
    workers, rate, latency_ms = map(settings.get, ("workers", "rate", "latency_ms"))
    if not settings.get("measure"):
        if workers is None or rate is None:
            raise ValueError("Give --workers and --rate, as in --workers 4 --rate 10gbit; or --measure on the cluster")
        bits = rate_of(rate)
        origins.given.append(f"{workers} workers, each with a link of {bits / 1e9:g} Gb/s each way")
        if latency_ms is not None:
            origins.given.append(f"{latency_ms:g} ms of latency a small collective")
        return workers, bits, None if latency_ms is None else latency_ms / 1e3, settings["backend"]
    if rate is not None or latency_ms is not None:
        raise ValueError("--measure gives rate and latency: leave --rate and --latency-ms out")
    if settings.get("processes_per_worker", 1) > 1:
        raise ValueError("--measure takes one process a worker: measure so first, then give what it found by --rate")
    found = measure_network(workers)
    return None if found is None else _said(found, origins)


def _said(found: Measured, origins: Origins) -> tuple[int, float, float, str]:
    """A measured link, with its origin noted."""
    origins.measured.append(
        f"{found.rate / 1e9:.3g} Gb/s of payload and {1e3 * found.latency_s:.3g} ms of latency a small collective, by "
        f"all-reduces of two sizes over {found.backend} between {found.workers} workers"
    )
    return found.workers, found.rate, found.latency_s, found.backend


def _constants(settings: Mapping[str, Any], backend: str, origins: Origins) -> Constants:
    start = FITTED[backend]
    path = settings.get("links")
    if path is None:
        return start
    steps = read_links(path, backend)
    of = f"the model's constants, on {len(steps)} steps of {path}"
    if len(steps) < FEWEST_TO_CHECK:
        origins.measured.append(f"{of}: too few to say how far it is off")
    else:
        found = check(steps, unseen(steps, start))
        origins.measured.append(
            f"{of}; on steps that a fit has not seen it is off by {found.median:.0%} in the median and {found.p95:.0%} at "
            f"the 95th percentile (most for {found.worst}), and right about not to compress in {found.dont_right} of "
            f"{found.dont_total} steps that gained under 5 %"
        )
        if found.busy:
            origins.measured.append(
                f"{found.busy} of these steps are over 10 % shorter than without communication, which cannot be: the "
                "machine had other work, so measure again when it is idle"
            )
    return fit(steps, start, f"{len(steps)} steps of {path}")


def _study(settings: Mapping[str, Any], job: Job, origins: Origins) -> Learned | None:
    uri, target = settings.get("study"), settings.get("target_loss")
    if uri is None:
        if target is not None or settings.get("max_loss") is not None:
            raise ValueError("--target-loss and --max-loss speak of a study: give it by --study DIR")
        return None
    study = learned(read_chosen(uri), read_history(uri), target)
    origins.measured.append(
        f"{study.scale.name} and steps to the target: study {uri}, {study.task} with {study.workers} workers, "
        f"{study.steps} steps, "
        f"{study.repeats} repeat{'s' * (study.repeats > 1)}"
    )
    if study.target_loss is not None:
        whose = "given" if target is not None else f"{TARGET_FACTOR:g} times {study.reference}'s last one"
        origins.given.append(f"target: a validation loss of {study.target_loss:.4g} ({whose})")
    if study.workers != job.workers:
        origins.assumed.append(f"what {study.workers} workers lost in {study.scale.name}, {job.workers} lose too")
    if study.params not in (None, job.params):
        origins.assumed.append(f"what a model of {study.params:,} parameters lost, one of {job.params:,} loses too")
    return study


def _anchor(present: Present, job: Job, origins: Origins) -> None:
    """Add to `origins` what the program itself said, and what was made of it."""
    ms = f"{1e3 * present.step_s:.4g} ms a step of the program as it runs"
    if present.exposed_s is None:
        most = present.most_s / present.step_s
        origins.measured.append(f"{ms}; what of it waits for the network is not known, at most {most:.0%}")
        origins.assumed.append(
            f"all of that step is computing: what {present.name} adds is in every row, an upper bound"
        )
        return
    origins.measured.append(
        f"{ms}, of which {1e3 * present.exposed_s:.3g} ms wait for the network; every other step is predicted from this one"
    )
    if job.skew_s:
        origins.assumed.append(
            f"{1e3 * job.skew_s:.3g} ms of what waits, which the measured link does not need for the bytes, are waited at "
            "every synchronisation, however little it sends"
        )


def _assume(job: Job, c: Constants, study: Learned | None, origins: Origins, hidden_known: bool = False) -> None:
    """Add to `origins` what was neither given nor measured."""
    origins.assumed.append("all workers compute equally fast, and nothing else uses their links")
    if job.latency_s is None:
        latency = 2 * (job.workers - 1) * c.hop_s
        origins.assumed.append(f"{1e3 * latency:.2g} ms of latency a small collective of {job.workers} ({c.source})")
    if not job.payload:
        origins.assumed.append(f"payload reaches {c.efficiency:.0%} of the rate ({c.source})")
    whose = "as the present form does here" if hidden_known else c.source
    origins.assumed.append(
        f"DDP, and ours where they overlap, hide communication behind {c.hidden:.0%} of a step ({whose})"
    )
    if job.processes_per_worker > 1:
        origins.assumed.append(
            f"a step holds the averaging inside its worker of {job.processes_per_worker} processes; DDP and PowerSGD join "
            f"all {job.ranks} of them in one ring, which crosses each worker's link once"
        )
    if job.matrices is None:
        origins.assumed.append(
            f"PowerSGD's bytes are those of square matrices of side {MATRIX_SIDE}: no shapes are known"
        )
    if study is None:
        origins.assumed.append("nothing of accuracy: only a study can say (--study)")
    else:
        origins.assumed.append(
            f"DDP, and DDP with the bf16 hook, learn as the study's {study.reference}; delayed resets were not studied"
        )


def described(job: Job) -> str:
    """The job in a line."""
    return (
        f"{job.params:,} parameters, {1e3 * job.step_s:.4g} ms a step without communication, {job.workers} "
        f"worker{'s' * (job.workers > 1)}, {number(job.rate / 1e6)} Mb/s"
    )
