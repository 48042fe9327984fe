"""How averaged models lie in a results folder: models/RUN.safetensors, plain tensors under the names of a state_dict.

The tensors are those of the task's torch module, so any safetensors reader loads them, without this package. What else
there is to know stands in the header as text, with a SHA-256 over all of it. Reading runs no code.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from cser_ray.store.checkpoint import DamagedError
from cser_ray.store.folder import Folder

FACTS = ("run_id", "task", "model", "method", "ratio", "lr", "repeat", "workers", "steps", "test_acc", "test_loss")
"""Columns of a run's row that go with its model."""
SMALL = 64_000_000
"""Bytes of all models of a trial up to which `auto` keeps every one."""
_RUN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._=+-]*")


def encode(tensors: Mapping[str, Tensor], facts: Mapping[str, str]) -> bytes:
    """Tensors on the CPU that share no memory, and facts about them, as one safetensors file with its checksum."""
    # "format" is what other readers of safetensors look for
    text = {**facts, "format": "pt"}
    return safetensors.torch.save(dict(tensors), {**text, "sha256": _digest(tensors, text)})


def decode(data: bytes) -> tuple[dict[str, Tensor], dict[str, str]]:
    """What `encode` was given. Raises DamagedError for anything else."""
    try:
        tensors = safetensors.torch.load(data)
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        facts = dict(header["__metadata__"])
        if facts.pop("sha256") != _digest(tensors, facts):
            raise ValueError("its checksum differs")
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise DamagedError(f"not a model as it was written ({error})") from error
    return tensors, facts


@dataclass(frozen=True)
class ModelStore:
    """The averaged models of finished runs in a results folder, at a local path or s3://bucket/prefix."""

    uri: str

    def write(self, run_id: str, data: bytes) -> None:
        """Make it the model of a run, whole or not at all. Raises OSError where it cannot be written."""
        self._folder.make("models")
        self._folder.write(self.name(run_id), data)

    def read(self, run_id: str) -> bytes | None:
        """The model of a run as `encode` made it, verified, with all of `FACTS`; None where none was kept.

        Raises DamagedError, with its path, for one that is not what was written.
        """
        data = self._folder.read(self.name(run_id))
        if data is not None:
            try:
                _, facts = decode(data)
                if facts.get("run_id") != run_id:
                    raise DamagedError(f"it is the model of {facts.get('run_id')}")
                if lacking := [name for name in FACTS if name not in facts]:
                    raise DamagedError(f"it does not say its {', '.join(lacking)}")
            except DamagedError as error:
                raise DamagedError(f"{self.path(run_id)}: {error}") from error
        return data

    def sizes(self) -> dict[str, int]:
        """Bytes of each model that is kept, by run."""
        return {
            entry.base_name.removesuffix(".safetensors"): entry.size
            for entry in self._folder.entries("models")
            if entry.base_name.endswith(".safetensors")
        }

    def remove(self, run_id: str) -> None:
        """Keep this one no longer."""
        self._folder.remove(self.name(run_id))

    def path(self, run_id: str) -> str:
        """The file of a run as messages should call it."""
        return self._folder.path(self.name(run_id))

    def name(self, run_id: str) -> str:
        """The file of a run in the folder. Raises ValueError for an id that would lead out of it."""
        if not _RUN_ID.fullmatch(run_id):
            raise ValueError(f"run {run_id!r} names no file: an id has letters, digits and . _ = + - only")
        return f"models/{run_id}.safetensors"

    @cached_property
    def _folder(self) -> Folder:
        return Folder(self.uri)


def _digest(tensors: Mapping[str, Tensor], facts: Mapping[str, str]) -> str:
    shapes = {name: [str(tensor.dtype), *tensor.shape] for name, tensor in tensors.items()}
    digest = hashlib.sha256(json.dumps([facts, shapes], sort_keys=True).encode())
    for name in sorted(tensors):
        digest.update(tensors[name].contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
