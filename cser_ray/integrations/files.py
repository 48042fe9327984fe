"""A checkpoint's files on disk, one a process and one that says that all are there: whole, or not a checkpoint."""

import json
import os
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

WHOLE_MARK = "cser_ray.json"
FILES_VERSION = 1


def worker_file(rank: int) -> str:
    """The file of one worker's process."""
    return f"cser_ray_rank{rank}.pt"


def is_whole(folder: str | os.PathLike[str]) -> bool:
    """Whether all workers' files of a checkpoint had been written."""
    return manifest_in(Path(folder)) is not None


def newest_whole(folders: Iterable[Path]) -> str | None:
    """Of folders whose names end in a number, the whole one with the highest; None where none is."""
    numbered = [(int(match[0]), path) for path in folders if (match := re.search(r"\d+$", path.name))]
    return next((str(path) for _, path in sorted(numbered, reverse=True) if is_whole(path)), None)


def forget(folder: str | os.PathLike[str]) -> None:
    """From now on, what lies there is no checkpoint."""
    (Path(folder) / WHOLE_MARK).unlink(missing_ok=True)


def manifest_in(path: Path) -> dict[str, Any] | None:
    try:
        manifest: dict[str, Any] = json.loads((path / WHOLE_MARK).read_text())
    except (OSError, ValueError):
        return None
    if manifest["version"] > FILES_VERSION:
        raise ValueError(f"{path} was written by a newer cser-ray (version {manifest['version']}): upgrade it")
    return manifest


def content_of(file: Path, manifest: Mapping[str, Any]) -> dict[str, Any]:
    """A worker's file as the save of this manifest wrote it, also where its last rename was not reached."""
    steps = []
    for each in (file, next_to(file)):
        if each.exists():
            content: dict[str, Any] = torch.load(each, map_location="cpu", weights_only=True)
            if (content.get("save"), content["t"]) == (manifest.get("save"), manifest["t"]):
                return content
            steps.append(content["t"])
    if not steps:
        raise ValueError(f"{file} is missing: bring every worker's file to the folder that its process reads")
    raise ValueError(
        f"{file} is of step {steps[0]}, its checkpoint of step {manifest['t']} or of another save: take another one"
    )


def next_to(file: Path) -> Path:
    """Where a worker's file lies until all have written theirs."""
    return file.with_name(f"{file.name}.next")


def replace_whole(path: Path, write: Callable[[Any], object]) -> None:
    """Write a file of that name whole, or leave what was there."""
    half = path.with_name(f"{path.name}.tmp-{os.uname().nodename}-{os.getpid()}")
    try:
        with half.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        half.replace(path)
    finally:
        half.unlink(missing_ok=True)
