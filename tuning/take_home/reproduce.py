"""A run of a results folder as something to run again: its configuration, a file of settings, and commands.

A folder may come from somebody else. So a configuration is read field by field, with its type, and every word of a
command is quoted.
"""

import json
import re
import shlex
from collections.abc import Iterable, Mapping
from typing import Any, get_type_hints

from cser_ray.config import LOOPS_OWN, RunConfig, Shared, reads_of
from cser_ray.methods import METHODS
from cser_ray.settings import declared

COMMAND_WIDTH = 110
NOT_OF_LOOPS = ("task", *LOOPS_OWN)
"""What the command of a run whose loop is the user's does not say."""


def recorded_config(text: str | None) -> RunConfig:
    """The configuration that a run's row holds as JSON (`config_json`). Raises ValueError where that is no such thing."""
    try:
        values = json.loads(text or "null")
    except (ValueError, RecursionError) as error:
        raise ValueError(f"config_json of the run is not JSON ({error}): its settings are not known") from error
    kinds = get_type_hints(RunConfig)
    if not isinstance(values, dict) or not kinds.keys() >= values.keys() >= {"method", "task"}:
        raise ValueError("config_json of the run is no configuration of this version: its settings are not known")
    typed = {name: _typed(name, value, kinds[name]) for name, value in values.items()}
    try:
        return RunConfig(**typed)
    except ValueError as error:
        raise ValueError(f"config_json of the run is none of this version: {error}") from error


def settings_of_run(config: RunConfig) -> dict[str, Any]:
    """The options of `cser-ray train` that make this run again, by name; only knobs that the method reads.

    Raises ValueError for a run that no options describe.
    """
    record, values = METHODS[config.method], {}
    reads = reads_of(config.method, config.inner)
    shared = {each.name for each in declared(Shared)} - {"task"}
    for each in sorted(declared(config), key=lambda each: each.name in shared):  # the task and the method come first
        value = getattr(config, each.name)
        if (each.setting.by_method and each.name not in reads) or (config.loop and each.name in NOT_OF_LOOPS):
            continue
        if each.setting.option:
            values[each.name] = value
        elif value != each.default and each.name != "rung":  # the commands say themselves how a run is carried out
            raise ValueError(
                f"the run has {each.name} = {value} and cser-ray train has no option for it: it always takes {each.default}"
            )
    if not record.has_ratio:
        del values["ratio"]
    return {name: value for name, value in values.items() if value is not False and value != ""}


def settings_file(settings: Mapping[str, Any], comments: Iterable[str]) -> str:
    """The settings as YAML that `cser-ray train --config` reads, under comments."""
    import yaml

    lines = ["# " + " ".join(comment.split()) for comment in comments]  # no line of a comment may become a setting
    text = yaml.safe_dump({name.replace("_", "-"): value for name, value in settings.items()}, sort_keys=False)
    return "\n".join([*lines, text])


def train_command(settings: Mapping[str, Any]) -> str:
    """`cser-ray train` with these settings, for a shell; on real workers where only they can do what is asked."""
    return _lines(
        ["cser-ray train" + " --distributed" * bool(settings.get("overlap")), *map(shlex.join, _options(settings))]
    )


def job_command(settings: Mapping[str, Any]) -> str | None:
    """The same on real workers, as a Ray job; None where a setting cannot be handed through one.

    `ray job submit` joins its words for a shell on the cluster, but quotes only spaces, and with double quotes. So
    nothing may stand in them that this shell would read in another way.
    """
    options = job_words(settings)
    if options is None:
        return None
    own_task = "loop" in settings or ":" in str(settings["task"])  # its module lies in this folder
    head = "ray job submit " + "--working-dir . " * own_task + "-- cser-ray train --distributed"
    return _lines([head, *options])


def job_words(settings: Mapping[str, Any]) -> list[str] | None:
    """Settings as options that mean the same after the shell of `ray job submit` and the cluster's; None where none do."""
    options = _options(settings)
    if not all(re.fullmatch(r"[\w@%+=:,./ -]+", word) for option in options for word in option):
        return None
    return list(map(shlex.join, options))


def _options(settings: Mapping[str, Any]) -> list[list[str]]:
    return [
        ["--" + name.replace("_", "-"), *([] if value is True else [_word(value)])] for name, value in settings.items()
    ]


def _word(value: Any) -> str:
    """Digits that read back as the very same number; several after commas."""
    if isinstance(value, tuple):
        return ",".join(map(_word, value))
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
