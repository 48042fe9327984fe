"""The optimizer of a run as Python for a training loop of the user's own: imports, the constructor, and what to know.

Written from the very arguments that `cser_ray.train.build` builds the optimizer of a run with.
"""

import dataclasses
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from importlib import import_module
from typing import Any

from cser_ray.compressors import Identity, Zero
from cser_ray.compressors.text import parse
from cser_ray.config import RunConfig
from cser_ray.methods import METHODS
from cser_ray.optimizers.arguments import GROUP_OPTIONS
from cser_ray.ratio_schedule import GUARDRAIL, BudgetPhase
from cser_ray.ratio_schedule import parse as parse_schedule
from cser_ray.structure import number
from cser_ray.train.build import budget_at, optimizer_class, own_arguments
from tuning.take_home.reproduce import COMMAND_WIDTH

FRONT_DOORS = ("cser_ray", "cser_ray.optimizers", "cser_ray.compressors")
"""Where users import from, the shortest first; what none of them has is imported from its own module."""
MOST_MOVES = 8
"""Moves of a budget that are written out."""
_KEYS = ("seeds", "stream", "workers")
"""Of a compressor: its optimizer sets them."""


@dataclass(frozen=True)
class Constructor:
    """A piece of Python: `imports` and `call` are valid as they stand, where `model` is the user's.

    Args:
        imports: lines.
        call: `optimizer = ...`.
        others: (a compressor's argument, its expression for a model of `d` parameters on `n` workers), where the one in
            `call` is for the run's numbers only.
        moves: (step, what to call before it), where the run moves its budget.
        notes: sentences on what `call` does not say.
    """

    imports: tuple[str, ...]
    call: str
    others: tuple[tuple[str, str], ...]
    moves: tuple[tuple[int, str], ...]
    notes: tuple[str, ...]

    def __str__(self) -> str:
        comments = [*self.notes]
        if self.others:
            comments += ["  from cser_ray.compressors.text import parse", *(f"  {k}={word}" for k, word in self.others)]
        comments += [f"before step {step}: {text}" for step, text in self.moves]
        return "\n".join([*self.imports, "", self.call, *(f"# {comment}" for comment in comments)])


def constructor(config: RunConfig, d: int | None = None) -> Constructor:
    """The code for a run's optimizer, as a worker of a loop of one's own builds it.

    `d`: parameters of the run's model. Raises ValueError where its compressors cannot be known without, or cannot be had.

    >>> print(constructor(RunConfig(method="csea", reset_ratio=16.0, lr=0.05, weight_decay=0.0, steps=512)))
    from cser_ray import CSEA, GRBS
    <BLANKLINE>
    optimizer = CSEA(model.parameters(), lr=0.05, momentum=0.9, weight_decay=0, reset_compressor=GRBS(16))
    # lr is before its schedule: step, over 512 steps. Evaluate in `with optimizer.averaged_parameters():`.
    """
    record, code = METHODS[config.method], _Code()
    given: dict[str, Any] = {"lr": config.lr, "momentum": config.momentum, "weight_decay": config.weight_decay}
    given |= own_arguments(config, d)
    if "momentum" not in GROUP_OPTIONS[given.get("inner", "nesterov")]:
        del given["momentum"]  # it is the first of the betas
    words = {name: code.expression(value) for name, value in given.items() if name not in record.constants}
    words |= {name: code.constant(path) for name, path in record.constants.items()}
    if config.processes_per_worker > 1:
        from cser_ray.communication.host_communicator import HostCommunicator

        words["communicator"] = f"{code.name(HostCommunicator)}(ranks_per_host={config.processes_per_worker})"
    arguments = ["model.parameters()", *(f"{name}={word}" for name, word in words.items())]
    call = _call(f"optimizer = {code.name(optimizer_class(config.method))}", arguments)
    others, moves = tuple(_for_others(config, given)), tuple(_moves(config, d, code))
    return Constructor(code.imports(), call, others, moves, tuple(_notes(config, d, bool(others))))


class _Code:
    """Values as Python, and what has to be imported for them."""

    def __init__(self) -> None:
        self._modules: set[str] = set()
        self._names: dict[str, set[str]] = {}

    def imports(self) -> tuple[str, ...]:
        """Lines in a formatter's order."""
        names = (f"from {module} import {', '.join(sorted(found))}" for module, found in sorted(self._names.items()))
        return (*(f"import {module}" for module in sorted(self._modules)), *names)

    def name(self, kind: type) -> str:
        """A class by its name, imported from where users find it."""
        places = (door for door in FRONT_DOORS if getattr(import_module(door), kind.__name__, None) is kind)
        self._names.setdefault(next(places, kind.__module__), set()).add(kind.__name__)
        return kind.__name__

    def constant(self, path: str) -> str:
        """What "module:object" names."""
        module, _, name = path.partition(":")
        self._modules.add(module)
        return f"{module}.{name}"

    def expression(self, value: Any) -> str:
        """A number, a text, a tuple, or a compressor as its user would write it."""
        if isinstance(value, float):
            whole = value.is_integer()
            return repr(int(value) if whole else value) if math.isfinite(value) else f'float("{value}")'
        if isinstance(value, Fraction):  # of an interval: a step on average
            return (
                str(value.numerator)
                if value.denominator == 1
                else f"{self.name(Fraction)}({value.numerator}, {value.denominator})"
            )
        if isinstance(value, tuple):
            return f"({', '.join(map(self.expression, value))})"
        if isinstance(value, str):
            return json.dumps(value)
        if not dataclasses.is_dataclass(value):
            return repr(value)
        parts = []
        for field in dataclasses.fields(value):
            own = getattr(value, field.name)
            if field.name not in _KEYS and own != field.default:
                named = "" if field.name == "ratio" else f"{field.name}="  # GRBS(16)
                parts.append(named + self.expression(own))
        return f"{self.name(type(value))}({', '.join(parts)})"


def _call(function: str, arguments: list[str]) -> str:
    """In one line where it fits, else with a line for each argument."""
    line = f"{function}({', '.join(arguments)})"
    return (
        line
        if len(line) <= COMMAND_WIDTH
        else "\n".join([f"{function}(", *(f"    {each}," for each in arguments), ")"])
    )


def _for_others(config: RunConfig, given: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """The compressors that keep what meets a ratio at the run's d and n, as expressions in d and n."""
    record = METHODS[config.method]
    kind = parse(record.compressor or config.compressor)
    if kind.shared or record.spread is not None or config.workers == 1:
        return
    for name, value in given.items():
        if name.endswith("compressor") and not isinstance(value, Identity | Zero):
            yield name, f'parse("{kind}").at({number(getattr(config, record.arguments[name]))}, d=d, n=n)'


def _moves(config: RunConfig, d: int | None, code: _Code) -> Iterator[tuple[int, str]]:
    """What the run calls to move its budget, and before which step."""
    for phase in config.phases()[:MOST_MOVES]:
        if phase != BudgetPhase.of(1, config.structure):
            words = [f"{name}={code.expression(value)}" for name, value in budget_at(config, phase, d).items()]
            yield phase.first, f"optimizer.move_budget_({', '.join(words)})"


def _notes(config: RunConfig, d: int | None, others: bool) -> Iterator[str]:
    record, schedule = METHODS[config.method], parse_schedule(config.ratio_schedule)
    warmup = f", {config.warmup_steps} of them warm-up" * bool(config.warmup_steps)
    yield (
        f"lr is before its schedule: {config.schedule}, over {config.run_steps} steps{warmup}. Evaluate in "
        "`with optimizer.averaged_parameters():`."
    )
    if config.max_grad_norm:
        yield (
            "The run clipped each worker's gradient before its step: "
            f"`torch.nn.utils.clip_grad_norm_(model.parameters(), {config.max_grad_norm:g})`."
        )
    if config.accumulation > 1:
        yield f"A step was {config.accumulation} mini-batches, whose gradients were averaged."
    if record.spread is not None and "compressor" in record.reads:
        spread = record.spread(config.workers)
        yield f"For {config.workers} workers, of whom a neighbour gets {spread:.3g} times what an all-reduce would take."
    if others:
        yield f"For {d} parameters and {config.workers} workers. For another d and n the ratio is met by:"
    if schedule.name == GUARDRAIL:
        yield f"{schedule}: the run also moved its budget by its loss, which this line does not."
    elif (phases := len(config.phases())) > 1:
        some = f", of {phases} parts the first {MOST_MOVES}" if phases > MOST_MOVES else ""
        yield f"{schedule}: the run moved its budget{some}:"
