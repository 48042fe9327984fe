"""A run of a results folder as something to run again: its configuration, a file of settings, and commands.

A folder may come from somebody else. So a configuration is read field by field, with its type, and every word of a
command is quoted.
"""

import json
import re
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import fields
from typing import Any, get_type_hints

from cser_ray.budget import METHOD_BUDGETS
from cser_ray.config import RunConfig

WITHOUT_OPTION = ("beta2", "outer_lr", "outer_momentum", "dtype")
"""Fields of RunConfig that `cser-ray train` always leaves at their defaults."""
COMMAND_WIDTH = 110


def recorded_config(text: str | None) -> RunConfig:
    """The configuration that a run's row holds as JSON (`config_json`). Raises ValueError where that is no such thing."""
    try:
        values = json.loads(text or "null")
    except (ValueError, RecursionError) as error:
        raise ValueError(f"config_json of the run is not JSON ({error}): its settings are not known") from error
    kinds = get_type_hints(RunConfig)
    if not isinstance(values, dict) or not kinds.keys() >= values.keys() >= {"method", "task"}:
        raise ValueError("config_json of the run is no configuration of this version: its settings are not known")
    config = RunConfig(**{name: _typed(name, value, kinds[name]) for name, value in values.items()})
    if config.method not in METHOD_BUDGETS:
        raise ValueError(f"config_json of the run names {config.method!r}, which is no method of this version")
    return config


def settings_of_run(config: RunConfig) -> dict[str, Any]:
    """The options of `cser-ray train` that make this run again, by name; only knobs that the method reads.

    Raises ValueError for a run that no options describe.
    """
    for field in fields(RunConfig):
        value = getattr(config, field.name)
        if field.name in WITHOUT_OPTION and value != field.default:
            raise ValueError(
                f"the run has {field.name} = {value} and cser-ray train has no option for it: it always takes "
                f"{field.default}"
            )
    knobs = METHOD_BUDGETS[config.method].knobs
    names = (
        *("task", "model", "data_dir", "coarse_labels", "method"),
        *(("ratio", *knobs) if knobs else ()),
        *("lr", "repeat", "workers", "processes_per_worker", "steps", "batch_size", "seed", "block_order"),
        *("momentum", "weight_decay", "schedule", "warmup_steps", "evaluations"),
    )
    values = {name: getattr(config, name) for name in names}
    return {name: value for name, value in values.items() if value is not False and value != ""}


def settings_file(settings: Mapping[str, Any], comments: Iterable[str]) -> str:
    """The settings as YAML that `cser-ray train --config` reads, under comments."""
    import yaml

    lines = ["# " + " ".join(comment.split()) for comment in comments]  # no line of a comment may become a setting
    text = yaml.safe_dump({name.replace("_", "-"): value for name, value in settings.items()}, sort_keys=False)
    return "\n".join([*lines, text])


def train_command(settings: Mapping[str, Any]) -> str:
    """`cser-ray train` with these settings, for a shell."""
    return _lines(["cser-ray train", *map(shlex.join, _options(settings))])


def job_command(settings: Mapping[str, Any]) -> str | None:
    """The same on real workers, as a Ray job; None where a setting cannot be handed through one.

    `ray job submit` joins its words for a shell on the cluster, but quotes only spaces, and with double quotes. So
    nothing may stand in them that this shell would read in another way.
    """
    options = _options(settings)
    if not all(re.fullmatch(r"[\w@%+=:,./ -]+", word) for option in options for word in option):
        return None
    own_task = ":" in str(settings["task"])  # its module lies in this folder
    head = "ray job submit " + "--working-dir . " * own_task + "-- cser-ray train --distributed"
    return _lines([head, *map(shlex.join, options)])


def _options(settings: Mapping[str, Any]) -> list[list[str]]:
    return [
        ["--" + name.replace("_", "-"), *([] if value is True else [_word(value)])] for name, value in settings.items()
    ]


def _word(value: Any) -> str:
    """Digits that read back as the very same number."""
    whole = isinstance(value, float) and value.is_integer()
    return str(int(value) if whole else value)


def _lines(parts: Iterable[str]) -> str:
    """The parts of a command, in lines that a shell joins."""
    lines: list[str] = []
    for part in parts:
        if lines and len(lines[-1]) + len(part) < COMMAND_WIDTH:
            lines[-1] += " " + part
        else:
            lines.append(part)
    return " \\\n    ".join(lines)


def _typed(name: str, value: Any, kind: type) -> Any:
    if kind is float and value == "inf":  # JSON has no infinity
        return float("inf")
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is not kind:
        raise ValueError(f"config_json of the run has {name} = {value!r}, which is no {kind.__name__}")
    return value
