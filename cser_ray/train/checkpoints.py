"""Saves a trial between two steps and resumes it bit for bit; each process has a file of its own.

A tensor that is equal on all workers is stored once, with the first worker's values; a process adds those in which its
workers differ. The few bytes that processes exchange to save and resume are not in the ledger, so that a resumed run has
the ledger of an uninterrupted one.
"""

import contextlib
import hashlib
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from cser_ray.communication.communicator import Communicator
from cser_ray.config import DEFAULTS
from cser_ray.errors import CserWarning
from cser_ray.store.checkpoint import COMMON, MALFORMED, CheckpointStore, DamagedError, Manifest, rank_file
from cser_ray.store.read import jsonable
from cser_ray.train.logistics import CHECKPOINT_S
from cser_ray.train.record import Record
from cser_ray.train.stack import Stack
from cser_ray.train.state import Part, fingerprint, merged, put_back_, redistribute_, taken

NOT_WRITTEN = bytes(32)
"""In place of a file's SHA-256."""
NO, YES = b"\0", b"\1"
Read = Callable[[Stack, Record, CheckpointStore, int], Callable[[], None]]
"""Reads a checkpoint of a step and returns what puts it back; raises DamagedError."""


class Checkpoints:
    """The checkpoints of one trial in the results folder `uri`, which all processes must see.

    `every_s`: seconds between two, by the clock of rank 0; 0 saves after every evaluation. `earlier`: a trial that differs
    in its number of workers only; where this one has no checkpoint yet, it resumes from the newest of that one. `elastic`:
    this trial's own may be of another number of workers, too.
    """

    def __init__(
        self, uri: str, trial_id: str, every_s: float = CHECKPOINT_S, earlier: str = "", elastic: bool = False
    ):
        if not every_s >= 0:
            raise ValueError(f"Seconds between checkpoints are at least 0, not {every_s}")
        self.store, self.every_s = CheckpointStore(uri, trial_id), every_s
        self.earlier = CheckpointStore(uri, earlier) if earlier else None
        self.elastic = elastic
        self._saved_at = time.monotonic()

    def restore(self, stack: Stack, record: Record) -> None:
        """Resume from the newest checkpoint that every process finds undamaged, or else from `earlier`'s, if there is one.

        A damaged one is named in a CserWarning and in the rows. Raises ValueError where it belongs to another
        configuration.
        """
        if (
            not self._go_on(stack, record, self.store, self._own_or_all if self.elastic else self._own)
            and self.earlier is not None
        ):
            self._go_on(stack, record, self.earlier, self._of_all)
        self._saved_at = time.monotonic()

    def _go_on(self, stack: Stack, record: Record, store: CheckpointStore, read: Read) -> bool:
        """Resume from a checkpoint of `store`; whether there was one."""
        communicator = stack.communicator
        steps = store.steps() if _rank(communicator) == 0 else []
        left_out: list[str] = []
        for step in iter(lambda: _next(communicator, steps), 0):
            put_back, problem = None, ""
            try:
                put_back = read(stack, record, store, step)
            except (DamagedError, OSError) as error:
                problem = str(error)
            everywhere = NO not in everyone(communicator, NO if put_back is None else YES)
            if put_back is not None and everywhere:
                put_back()
                record.add_notes(left_out)
                return True
            left_out.append(f"left out the damaged checkpoint of step {step}")
            if problem:
                warnings.warn(f"A damaged checkpoint is left out: {problem}", CserWarning, stacklevel=4)
        record.add_notes(left_out)
        return False

    def save(self, stack: Stack, record: Record) -> None:
        """Save, if `every_s` seconds have passed.

        A file that cannot be written is named in a CserWarning, and training continues.
        """
        communicator = stack.communicator
        due = time.monotonic() - self._saved_at >= self.every_s
        if everyone(communicator, bytes([due]))[0] == NO:  # clocks differ: rank 0 decides
            return
        rank, step = _rank(communicator), stack.t
        tensors, state = taken(stack, record)
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
        if rank == 0:
            files = {COMMON: common.hex()} | {rank_file(k): digest.hex() for k, digest in enumerate(written)}
            whole = NOT_WRITTEN not in (common, *written)
            manifest = Manifest(fingerprint(stack), files)
            if not whole or self._attempt(lambda: self.store.commit(step, manifest)) == NOT_WRITTEN:
                with contextlib.suppress(OSError):  # on a full disk its part would take the room of results
                    self.store.drop(step)
        self._saved_at = time.monotonic()
        record.go_on()

    def remove(self, stack: Stack) -> None:
        """Remove all checkpoints of a trial that has ended, once its rows are written."""
        if _rank(stack.communicator) == 0:
            with contextlib.suppress(OSError):  # what is left takes room and does no harm
                self.store.remove()

    def _own(self, stack: Stack, record: Record, store: CheckpointStore, step: int) -> Callable[[], None]:
        """Loads what the process of this rank saved."""
        manifest = _manifest(stack, store, step, fingerprint(stack))
        part = _part(store, step, manifest, _rank(stack.communicator))
        return _strictly(store, step, lambda: put_back_(stack, record, step, part))

    def _own_or_all(self, stack: Stack, record: Record, store: CheckpointStore, step: int) -> Callable[[], None]:
        """Of as many workers as there are here, each its own; else what all of them saved."""
        same = store.manifest(step).fingerprint.get("workers") == stack.config.workers
        return (self._own if same else self._of_all)(stack, record, store, step)

    def _of_all(self, stack: Stack, record: Record, store: CheckpointStore, step: int) -> Callable[[], None]:
        """Merges what all processes of a trial with another number of workers saved, and starts every worker here from it."""
        workers = store.manifest(step).fingerprint.get("workers")
        if not isinstance(workers, int) or workers < 1:
            raise DamagedError(f"{store.path(step)} is of {workers!r} workers")
        manifest = _manifest(stack, store, step, fingerprint(stack) | {"workers": workers})
        part = merged(_part(store, step, manifest, rank) for rank in range(len(manifest.files) - 1))
        return _strictly(store, step, lambda: redistribute_(stack, record, step, part, workers))

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


def _manifest(stack: Stack, store: CheckpointStore, step: int, expected: dict[str, Any]) -> Manifest:
    """The manifest of a step; ValueError where it belongs to another configuration than `expected`."""
    manifest = store.manifest(step)
    # a setting that is younger than the checkpoint stood at its default
    found = {name: jsonable(DEFAULTS[name]) for name in expected if name in DEFAULTS} | manifest.fingerprint
    if found != expected:
        pairs = [(name, found.get(name), expected.get(name)) for name in sorted(found.keys() | expected.keys())]
        differences = "; ".join(f"{name} {there} there, {here} here" for name, there, here in pairs if there != here)
        raise ValueError(
            f"{store.path(step)} is a checkpoint of another configuration: {differences}. Give the settings it was made "
            "with to go on, or another --out, or remove it to train from the beginning"
        )
    return manifest


def _part(store: CheckpointStore, step: int, manifest: Manifest, rank: int) -> Part:
    """What process `rank` saved, as `taken` gave it."""
    common, _ = store.read(step, COMMON, manifest)
    own, state = store.read(step, rank_file(rank), manifest)
    tensors: dict[str, Tensor] = {}
    try:
        for name, first in common.items():
            if name not in own:
                tensors[name] = first.expand(len(first), state["rows"][name], *first.shape[2:])
            else:
                tensors[name] = torch.cat([first, own[name]], 1) if rank == 0 else own[name]
    except (*MALFORMED, IndexError) as error:
        raise DamagedError(f"{store.path(step)}/{rank_file(rank)} is not of a trial: {error!r}") from error
    return tensors, state


def _strictly(store: CheckpointStore, step: int, put_back: Callable[[], None]) -> Callable[[], None]:
    """`put_back`, with everything that does not fit this trial raised as one ValueError."""

    def checked() -> None:
        try:
            put_back()
        except (*MALFORMED, IndexError) as error:
            raise ValueError(
                f"{store.path(step)} is whole, but not what a trial saves ({error!r}): remove it, and the one before is taken"
            ) from error

    return checked


def everyone(communicator: Communicator, mine: bytes) -> list[bytes]:
    """All-gather of a few bytes: those of every process, in order of rank; all must give equally many."""
    group = communicator.group
    if group is None:
        return [mine]
    device = "cuda" if dist.get_backend(group) == "nccl" else "cpu"
    sent = torch.frombuffer(bytearray(mine), dtype=torch.uint8).to(device)
    parts = [torch.empty_like(sent) for _ in range(dist.get_world_size(group))]
    dist.all_gather(parts, sent, group=group)
    return [part.cpu().numpy().tobytes() for part in parts]


def _next(communicator: Communicator, steps: list[int]) -> int:
    """Rank 0 takes the first step off its list, and every process gets it; 0 where none is left."""
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
