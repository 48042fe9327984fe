"""How checkpoints lie in a results folder: safetensors, one file a process, and a manifest that is written last.

    checkpoints/TRIAL/step-00000512/common.safetensors   the first worker's values
                                    rank-0.safetensors   what the workers of process 0 hold besides, and its counters
                                    manifest.json        the SHA-256 of each file, and its own

A checkpoint without a manifest does not exist. Reading runs no code: tensors are numbers, and all else is JSON.
"""

import contextlib
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from cser_ray.store.folder import Folder

VERSION = 1
KEPT = 2
"""Checkpoints of a trial that are kept: the last one, and the one to fall back to."""
COMMON = "common.safetensors"
MANIFEST = "manifest.json"
_STEP = re.compile(r"step-(\d+)")


MALFORMED = (ValueError, TypeError, KeyError, AttributeError, OverflowError, RuntimeError)
"""What reading content that nobody wrote like this may raise; nesting without end is a RuntimeError."""


class DamagedError(ValueError):
    """A checkpoint that is not what was written."""


def rank_file(rank: int) -> str:
    """The file of one process."""
    return f"rank-{rank}.safetensors"


def encode(tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> bytes:
    """Contiguous tensors on the CPU, and a JSON-able `state` in the header, as one safetensors file."""
    return safetensors.torch.save(dict(tensors), {"state": json.dumps(state, allow_nan=False)})


def decode(data: bytes) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What `encode` was given. Raises DamagedError for anything else."""
    try:
        tensors = safetensors.torch.load(data)
        # safetensors gives the header's text for a path only, and a bucket has none: 8 bytes of length, then JSON
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        state = json.loads(header["__metadata__"]["state"])
        if not isinstance(state, dict):
            raise ValueError("its state is no JSON object")
        return tensors, state
    except (SafetensorError, *MALFORMED) as error:
        raise DamagedError(f"not a file of this kind ({error})") from error


@dataclass(frozen=True)
class Manifest:
    """What a checkpoint consists of: the configuration it belongs to, and the SHA-256 of each of its files."""

    fingerprint: dict[str, Any]
    files: dict[str, str]


@dataclass(frozen=True)
class CheckpointStore:
    """The checkpoints of one trial in a results folder, at a local path or s3://bucket/prefix; a step names one."""

    uri: str
    trial_id: str

    def steps(self) -> list[int]:
        """Steps with a checkpoint, the newest first."""
        return [step for step in self._begun() if self._folder.read(self._name(step, MANIFEST)) is not None]

    def begin(self, step: int) -> None:
        """Make the folder of a step; whatever a killed process left there is no checkpoint any more."""
        self._folder.remove(self._name(step, MANIFEST))
        self._folder.make(f"{self._root}/step-{step:08d}")

    def write(self, step: int, file: str, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> bytes:
        """Write one file and return its SHA-256."""
        return self.write_bytes(step, file, encode(tensors, state))

    def make(self, step: int) -> None:
        """Make the folder of a step, where any process may be the first."""
        self._folder.make(f"{self._root}/step-{step:08d}")

    def write_bytes(self, step: int, file: str, data: bytes) -> bytes:
        """Write one file of another kind and return its SHA-256."""
        self._folder.write(self._name(step, file), data)
        return hashlib.sha256(data).digest()

    def commit(self, step: int, manifest: Manifest) -> bytes:
        """Make it a checkpoint, remove all but the last `KEPT`, and return its SHA-256."""
        content = {"version": VERSION, "step": step, **vars(manifest)}
        digest = _digest(content)
        text = json.dumps({**content, "sha256": digest.hex()}, indent=2, allow_nan=False)
        self._folder.write(self._name(step, MANIFEST), text.encode())
        earlier = [other for other in self.steps() if other < step]
        with contextlib.suppress(OSError):  # what is too much takes room and does no harm
            for other in set(self._begun()) - {step, *earlier[: KEPT - 1]}:
                self.drop(other)
        return digest

    def drop(self, step: int) -> None:
        """Remove the checkpoint of a step, or what there is of it."""
        self._folder.remove(self._name(step, MANIFEST))  # first, so that a kill leaves none half there
        self._folder.remove(f"{self._root}/step-{step:08d}")

    def manifest(self, step: int) -> Manifest:
        """The verified manifest of a step. Raises DamagedError where there is none or it is not what was written."""
        try:
            content = json.loads(self._folder.read(self._name(step, MANIFEST)) or b"")
            digest = content.pop("sha256")
            if digest != _digest(content).hex() or content["step"] != step:
                raise ValueError("its checksum differs")
            if content["version"] > VERSION:
                raise ValueError(f"version {content['version']} is newer than this cser-ray: upgrade it")
            if not (isinstance(content["fingerprint"], dict) and isinstance(content["files"], dict)):
                raise ValueError("it holds something else")
            return Manifest(content["fingerprint"], content["files"])
        except MALFORMED as error:
            raise DamagedError(f"{self.path(step)}/{MANIFEST}: {error}") from error

    def read(self, step: int, file: str, manifest: Manifest) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """One verified file. Raises DamagedError where it is absent or not what was written."""
        return decode(self.read_bytes(step, file, manifest))

    def read_bytes(self, step: int, file: str, manifest: Manifest) -> bytes:
        """The verified content of one file. Raises DamagedError as `read` does."""
        data = self._folder.read(self._name(step, file))
        if data is None or hashlib.sha256(data).hexdigest() != manifest.files.get(file):
            reason = "is not there" if data is None else "does not have the checksum in the manifest"
            raise DamagedError(f"{self.path(step)}/{file} {reason}")
        return data

    def remove(self) -> None:
        """Remove all checkpoints of the trial."""
        self._folder.remove(self._root)

    def path(self, step: int) -> str:
        """The folder of a step as messages should call it."""
        return self._folder.path(f"{self._root}/step-{step:08d}")

    def _begun(self) -> list[int]:
        """Steps that have a folder, whole or not, the newest first."""
        names = (entry.base_name for entry in self._folder.entries(self._root))
        return sorted((int(match[1]) for match in map(_STEP.fullmatch, names) if match), reverse=True)

    def _name(self, step: int, file: str) -> str:
        return f"{self._root}/step-{step:08d}/{file}"

    @property
    def _root(self) -> str:
        return f"checkpoints/{self.trial_id}"

    @cached_property
    def _folder(self) -> Folder:
        return Folder(self.uri)


def _digest(content: Mapping[str, Any]) -> bytes:
    return hashlib.sha256(json.dumps(content, sort_keys=True, allow_nan=False).encode()).digest()
