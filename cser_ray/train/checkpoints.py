"""Saves a trial between two steps and goes on from there, each process with a file of its own, with identical bits.

What all workers hold alike is stored once, with the first worker's values; a process adds what its workers hold
otherwise. The few bytes that processes exchange about it are not in the ledger, which is that of an undisturbed run.
"""

import contextlib
import hashlib
import time
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor

from cser_ray.checkpoint import COMMON, CheckpointStore, DamagedError, Manifest, rank_file
from cser_ray.communicator import Communicator
from cser_ray.errors import CserWarning
from cser_ray.train.record import Record
from cser_ray.train.state import fingerprint, put_back_, taken

if TYPE_CHECKING:
    from cser_ray.train.loop import Trial

CHECKPOINT_S = 30.0
"""Seconds from one checkpoint to the next, at least: a trial that takes less is cheaper to train again."""
NOT_WRITTEN = bytes(32)
"""In place of a file's SHA-256."""
NO, YES = b"\0", b"\1"


class Checkpoints:
    """The checkpoints of one trial in the results folder `uri`, which all processes must see.

    `every_s`: seconds between two, by the clock of rank 0; 0 saves after every evaluation.
    """

    def __init__(self, uri: str, trial_id: str, every_s: float = CHECKPOINT_S):
        if not every_s >= 0:
            raise ValueError(f"Seconds between checkpoints are at least 0, not {every_s}")
        self.store, self.every_s = CheckpointStore(uri, trial_id), every_s
        self._saved_at = time.monotonic()

    def restore(self, trial: "Trial", record: Record) -> None:
        """Go on from the newest checkpoint that every process finds whole, if there is one.

        A damaged one is named in a CserWarning. Raises ValueError where it belongs to another configuration.
        """
        communicator = trial.communicator
        steps = self.store.steps() if _rank(communicator) == 0 else []
        for step in iter(lambda: _next(communicator, steps), 0):
            found, problem = None, ""
            try:
                found = self._read(trial, step)
            except (DamagedError, OSError) as error:
                problem = str(error)
            everywhere = NO not in everyone(communicator, NO if found is None else YES)
            if found is not None and everywhere:
                put_back_(trial, record, step, *found)
                break
            if problem:
                warnings.warn(f"A damaged checkpoint is left out: {problem}", CserWarning, stacklevel=3)
        self._saved_at = time.monotonic()

    def save(self, trial: "Trial", record: Record) -> None:
        """Save, if it is time. A file that cannot be written is named in a CserWarning, and training goes on."""
        communicator = trial.communicator
        due = time.monotonic() - self._saved_at >= self.every_s
        if everyone(communicator, bytes([due]))[0] == NO:  # clocks differ: rank 0 decides
            return
        rank, step = _rank(communicator), trial.t
        tensors, state = taken(trial, record)
        state["rows"] = {name: tensor.shape[1] for name, tensor in tensors.items()}
        firsts = {name: tensor[:, :1].cpu().contiguous() for name, tensor in tensors.items()}
        common = self._attempt(lambda: self._write_common(step, firsts)) if rank == 0 else b""
        # when this exchange is over, the folder is there, and every process knows the first worker's values
        digests = {name: hashlib.sha256(_bits(first).numpy().tobytes()).digest() for name, first in firsts.items()}
        shared = everyone(communicator, b"".join(digests.values()))[0]
        own = {
            name: (tensor[:, 1:] if rank == 0 else tensor).cpu().contiguous()
            for place, (name, tensor) in enumerate(tensors.items())
            if digests[name] != shared[32 * place : 32 * (place + 1)] or not _alike(tensor)
        }
        written = everyone(communicator, self._attempt(lambda: self.store.write(step, rank_file(rank), own, state)))
        if rank == 0 and NOT_WRITTEN not in (common, *written):
            files = {COMMON: common.hex()} | {rank_file(k): digest.hex() for k, digest in enumerate(written)}
            self._attempt(lambda: self.store.commit(step, Manifest(fingerprint(trial), files)))
        self._saved_at = time.monotonic()
        record.go_on()

    def remove(self, trial: "Trial") -> None:
        """After the end, once the rows are written: nothing is left to go on with."""
        if _rank(trial.communicator) == 0:
            with contextlib.suppress(OSError):  # what is left takes room and does no harm
                self.store.remove()

    def _read(self, trial: "Trial", step: int) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """This process's part of a checkpoint, as `taken` gave it."""
        manifest, expected = self.store.manifest(step), fingerprint(trial)
        if manifest.fingerprint != expected:
            names = sorted(manifest.fingerprint.keys() | expected.keys())
            pairs = [(name, manifest.fingerprint.get(name), expected.get(name)) for name in names]
            differences = "; ".join(
                f"{name} {there} there, {here} here" for name, there, here in pairs if there != here
            )
            raise ValueError(
                f"{self.store.path(step)} is a checkpoint of another configuration: {differences}. Give the settings it "
                "was made with to go on, or another --out, or remove it to train from the beginning"
            )
        rank = _rank(trial.communicator)
        common, _ = self.store.read(step, COMMON, manifest)
        own, state = self.store.read(step, rank_file(rank), manifest)
        tensors: dict[str, Tensor] = {}
        for name, first in common.items():
            if name not in own:
                tensors[name] = first.expand(len(first), state["rows"][name], *first.shape[2:])
            else:
                tensors[name] = torch.cat([first, own[name]], 1) if rank == 0 else own[name]
        return tensors, state

    def _write_common(self, step: int, firsts: dict[str, Tensor]) -> bytes:
        self.store.begin(step)
        return self.store.write(step, COMMON, firsts, {})

    def _attempt(self, write: Callable[[], bytes]) -> bytes:
        """What `write` returns, or NOT_WRITTEN: an exception on one process would leave the others waiting."""
        try:
            return write()
        except OSError as error:
            warnings.warn(f"No checkpoint was made, the last one stands: {error}", CserWarning, stacklevel=4)
            return NOT_WRITTEN


def everyone(communicator: Communicator, mine: bytes) -> list[bytes]:
    """What every process gives, in order of rank; all give equally many bytes."""
    group = communicator.group
    if group is None:
        return [mine]
    device = "cuda" if dist.get_backend(group) == "nccl" else "cpu"
    sent = torch.frombuffer(bytearray(mine), dtype=torch.uint8).to(device)
    parts = [torch.empty_like(sent) for _ in range(dist.get_world_size(group))]
    dist.all_gather(parts, sent, group=group)
    return [part.cpu().numpy().tobytes() for part in parts]


def _next(communicator: Communicator, steps: list[int]) -> int:
    """The first of the steps that rank 0 knows, taken from its list; 0 where none is left."""
    return int.from_bytes(everyone(communicator, (steps.pop(0) if steps else 0).to_bytes(8, "little"))[0], "little")


def _rank(communicator: Communicator) -> int:
    """The number of this process among all, those of one worker included."""
    return 0 if communicator.group is None else dist.get_rank(communicator.group)


def _bits(tensor: Tensor) -> Tensor:
    """The same numbers as integers: equal bits are equal, whether -0.0 or NaN."""
    return tensor.view({1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()])


def _alike(tensor: Tensor) -> bool:
    """Whether all workers here hold what the first one here holds; `[runs, workers, ...]`."""
    bits = _bits(tensor)
    return torch.equal(bits, bits[:, :1].expand_as(bits))
