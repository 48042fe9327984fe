"""The rows of a plan: every method at every ratio, exact, overlapped and delayed, beside what torch offers."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from cser_ray.budget import structure_for
from cser_ray.compressors.text import overlaps
from cser_ray.methods import METHODS
from tuning.advise.constants import Constants
from tuning.advise.learned import Curve, Learned
from tuning.advise.step_time import Form, Job, Prediction, predict, synchronisations, wire_s
from tuning.compare.verdict import simplicity

BESIDE = ("ddp", "ddp-bf16", "powersgd-1")
"""The peers in every plan."""
AS_DENSE = ("ddp", "ddp-bf16")
"""Peers taken to need as many steps as a study's synchronous training."""
PLANNED = tuple(name for name in METHODS.builtin if METHODS[name].by_default and METHODS[name].has_ratio)
"""Planned with where the user names none."""
LEAVES = 0.02
"""A form leaves the link, that is the link no longer limits it, where communication takes less than this share of its step."""
SEARCHED = tuple(2.0**k for k in range(1, 17))
"""Ratios tried, in order, to find the smallest at which a method leaves the link."""


@dataclass(frozen=True)
class Line:
    """A row. `ratio`: R_C asked for, None for a peer. `cost`: points of test accuracy under dense, by the study.

    `seconds_to_target`: infinite where the study's curve never reaches it. Both are None where no study says. `curve`:
    the study's validation loss against the seconds that its steps are predicted to take here. `measured`: the form of a
    program that runs already, as it runs.
    """

    prediction: Prediction
    ratio: float | None = None
    cost: float | None = None
    diverged: int = 0
    seconds_to_target: float | None = None
    curve: Curve = ()
    measured: bool = False

    @property
    def form(self) -> Form:
        """What the row is of."""
        return self.prediction.form

    @property
    def leaves_link(self) -> bool:
        """Whether communication is under 2 % of the step."""
        return self.prediction.exposed_s < LEAVES * self.prediction.step_s

    @property
    def time(self) -> float:
        """What methods are compared by: seconds to the target where they are known, else seconds a step."""
        return self.prediction.step_s if self.seconds_to_target is None else self.seconds_to_target


def lines_of(
    job: Job, c: Constants, methods: Sequence[str], ratios: Sequence[float], study: Learned | None
) -> tuple[list[Line], list[str]]:
    """The rows, peers first, then by ratio; and why the methods that are missing at a ratio are.

    A method has the structure that the study chose for it, or else the one that `structure_for` gives at that ratio.
    """
    peers = [Line(predict(Form(name), job, c)) for name in BESIDE]
    lines = [
        _with_study(line, (study.reference, 1.0), study) if study and line.form.method in AS_DENSE else line
        for line in peers
    ]
    skipped = []
    for ratio in ratios:
        for method in sorted(methods, key=simplicity):
            known = None if study is None else study.outcomes.get((method, ratio))
            try:
                structure = (known and known.structure) or structure_for(method, ratio)
            except ValueError as error:
                skipped.append(str(error))
                continue
            exact = Form(method, structure)
            if known:
                exact = replace(exact, reset_delay=known.reset_delay, compressor=known.compressor)
            for form in (exact, *_hidden(exact, job, c)):
                line = Line(predict(form, job, c), ratio)
                # another delay changes the training, and the study has not chosen it
                lines.append(
                    line if form.reset_delay != exact.reset_delay else _with_study(line, (method, ratio), study)
                )
    return lines, skipped


def _hidden(form: Form, job: Job, c: Constants) -> list[Form]:
    """Forms that hide communication, where the exact form exposes some: overlapped with the backward pass where that is
    faster; besides, with a delayed reset, where overlapping does not hide enough.
    """
    if form.reset_delay or Line(predict(form, job, c)).leaves_link:
        return []
    early = overlapped(form)
    better = [early] if predict(early, job, c).step_s < predict(form, job, c).step_s else []
    late = delayed(form, job, c)
    if any(Line(predict(found, job, c)).leaves_link for found in better) or late == form:
        return better
    return [*better, late]


def overlapped(form: Form) -> Form:
    """The form that sends during the backward pass; unchanged where its method, or its compressor, cannot."""
    return replace(form, overlap=overlaps(form.method, form.compressor))


def delayed(form: Form, job: Job, c: Constants) -> Form:
    """The form with the delay, in steps, that hides the sending of its reset; unchanged where its method takes none.

    At most H steps: the link must carry one reset in every H.
    """
    if "delay" not in METHODS[form.method].variants or job.workers == 1:
        return form
    reset, *_ = synchronisations(form, job, c)
    return replace(form, reset_delay=min(form.structure.reset_interval, math.ceil(wire_s(reset, job, c) / job.step_s)))


def leaving(job: Job, c: Constants, methods: Iterable[str]) -> dict[str, dict[str, float | None]]:
    """Method -> way of sending -> the smallest power of two as R_C at which it leaves the link; None up to 65536.

    The ways: "exact", "overlap" and "delay", each where the method has it.
    """
    found: dict[str, dict[str, float | None]] = {}
    for method in sorted((name for name in methods if METHODS[name].has_ratio), key=simplicity):
        forms = {ratio: Form(method, structure_for(method, ratio)) for ratio in SEARCHED}
        found[method] = {"exact": _smallest(forms, job, c)}
        if "overlap" in METHODS[method].variants:
            found[method]["overlap"] = _smallest({r: overlapped(form) for r, form in forms.items()}, job, c)
        if "delay" in METHODS[method].variants:
            found[method]["delay"] = _smallest({r: delayed(form, job, c) for r, form in forms.items()}, job, c)
    return found


def _smallest(forms: dict[float, Form], job: Job, c: Constants) -> float | None:
    return next((ratio for ratio, form in forms.items() if Line(predict(form, job, c)).leaves_link), None)


def _with_study(line: Line, key: tuple[str, float], study: Learned | None) -> Line:
    outcome = None if study is None else study.outcomes.get(key)
    if study is None or outcome is None:
        return line
    seconds = None
    if study.target_loss is not None:
        steps = outcome.steps_to_target
        seconds = math.inf if steps is None else steps * line.prediction.step_s
    curve = tuple((steps * line.prediction.step_s, loss) for steps, loss in outcome.curve)
    return replace(line, cost=outcome.cost, diverged=outcome.diverged, seconds_to_target=seconds, curve=curve)
