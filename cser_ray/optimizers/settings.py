"""How an optimizer was built, in a form that can be compared: between workers, and with what a file was saved by."""

import dataclasses
from typing import Any

import torch

_PLAIN = (bool, int, float, str, type(None), torch.dtype)
_OWN = ("t",)
"""Numbers that change as training goes on."""
_KEYED = ("seeds", "stream", "workers", "memory")


def settings_of(optimizer: Any, seeds: tuple[int, ...]) -> dict[str, Any]:
    """Its class, its seeds, and every public plain value or compressor among its attributes, by name."""
    found = {
        name: _of(value)
        for name, value in vars(optimizer).items()
        if not name.startswith("_")
        and name not in _OWN
        and (isinstance(value, _PLAIN) or hasattr(value, "with_streams"))
    }
    return {"the method": optimizer.state_kind(), "the seeds": seeds, **found, "overlap": optimizer.overlap is not None}


def _of(value: Any) -> Any:
    """A compressor as its user wrote it: without what `with_streams` adds, such as the ids of the workers that live here."""
    if not dataclasses.is_dataclass(value):
        return value if isinstance(value, _PLAIN) else type(value).__name__
    fields = {f.name: getattr(value, f.name) for f in dataclasses.fields(value) if f.name not in _KEYED}
    inside = {name: _of(each) if dataclasses.is_dataclass(each) else each for name, each in fields.items()}
    return (type(value).__name__, inside)
