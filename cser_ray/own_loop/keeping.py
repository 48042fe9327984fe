"""Checkpoints of a loop: what it registers, each process's own, whole or not at all, read without running any code."""

import io
import warnings
from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist

from cser_ray.config import DEFAULTS
from cser_ray.errors import CserWarning
from cser_ray.store.checkpoint import CheckpointStore, DamagedError, Manifest
from cser_ray.store.read import jsonable

FORMAT = 1


def own_file(rank: int) -> str:
    """The file of one process."""
    return f"loop-rank-{rank}.pt"


class Keeper:
    """The checkpoints of one run in a results folder that all processes see; every method is called by all together.

    `identity`: what a checkpoint and the run that loads it must have in common.
    """

    def __init__(self, uri: str, run_id: str, identity: Mapping[str, Any]):
        self.store, self.identity = CheckpointStore(uri, run_id), dict(identity)
        self._checked = False

    def newest(self) -> dict[str, Any] | None:
        """What this process saved in the newest checkpoint that is whole on every process; None where there is none.

        Raises ValueError where it is one of another configuration.
        """
        steps = first_of(self.store.steps() if rank() == 0 else [])
        for step in steps:
            content, problem = None, ""
            try:
                content = self._read(step)
            except (DamagedError, OSError) as error:
                problem = str(error)
            if all(gathered(content is not None)):
                return content
            if problem:
                warnings.warn(f"A damaged checkpoint is left out: {problem}", CserWarning, stacklevel=3)
        return None

    def save(self, step: int, content: Mapping[str, Any]) -> None:
        """Save what this process holds after a step. One that cannot be written is named in a CserWarning.

        Raises ValueError on every process where something in it is more than numbers, text and containers of them.
        """
        found, data, problem = io.BytesIO(), b"", ""
        try:
            torch.save({"format": FORMAT, **content}, found)
            data = found.getvalue()
            if not self._checked:
                loaded(data)
        except Exception as error:  # whatever a pickler says, or an unpickler
            problem = str(error).splitlines()[0] or type(error).__name__
        digest = b""
        if not problem:
            try:
                self.store.make(step)
                digest = self.store.write_bytes(step, own_file(rank()), data)
            except OSError as error:
                warnings.warn(f"No checkpoint was made, the last one stands: {error}", CserWarning, stacklevel=3)
        answers = gathered((problem, digest))
        for each, _ in answers:
            if each:
                raise ValueError(
                    f"what run.keep was given cannot be saved so that reading it runs no code: {each} Give it things "
                    "whose state_dict() holds tensors, numbers, text and containers of them"
                )
        self._checked, digests = True, [each for _, each in answers]
        if rank() == 0 and all(digests):
            files = {own_file(number): each.hex() for number, each in enumerate(digests)}
            try:
                self.store.commit(step, Manifest(self.identity, files))
            except OSError as error:
                warnings.warn(f"No checkpoint was made, the last one stands: {error}", CserWarning, stacklevel=3)

    def remove(self) -> None:
        """Once the run has ended, and its rows are written."""
        if rank() == 0:
            self.store.remove()

    def _read(self, step: int) -> dict[str, Any]:
        manifest = self.store.manifest(step)
        # a setting that is younger than the checkpoint stood at its default
        found = {name: jsonable(DEFAULTS[name]) for name in self.identity if name in DEFAULTS} | manifest.fingerprint
        if found != self.identity:
            names = found.keys() | self.identity.keys()
            pairs = [(name, found.get(name), self.identity.get(name)) for name in sorted(names)]
            told = "; ".join(f"{name} {there} there, {here} here" for name, there, here in pairs if there != here)
            raise ValueError(
                f"{self.store.path(step)} is a checkpoint of another configuration: {told}. Give the settings it was made "
                "with to go on, or another --out, or remove it to train from the beginning"
            )
        data = self.store.read_bytes(step, own_file(rank()), manifest)
        try:
            content = loaded(data)
        except Exception as error:  # whatever an unpickler says
            raise DamagedError(f"{self.store.path(step)}: {error}") from error
        if content.get("format") != FORMAT:
            raise ValueError(f"{self.store.path(step)} was written by another cser-ray: go on with that version")
        return content


def loaded(data: bytes) -> dict[str, Any]:
    """What `torch.save` wrote, of numbers, text and containers only."""
    content: dict[str, Any] = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    return content


def rank() -> int:
    """Of this process among all."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def gathered(value: Any) -> list[Any]:
    """Every process's value, in order of rank."""
    if not (dist.is_available() and dist.is_initialized()):
        return [value]
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def first_of(value: Any) -> Any:
    """Rank 0's value."""
    return gathered(value)[0]
