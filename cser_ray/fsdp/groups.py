"""FSDP's own objects, by which it holds and gathers parameters."""

from collections.abc import Sequence
from typing import Any

from torch.nn import Parameter


def groups() -> list[Any]:
    """FSDP's groups of parameters, of all modules alive. A parameter does not know its own: only modules do."""
    from torch.distributed._composable_state import _module_state_mapping
    from torch.distributed.fsdp._fully_shard._fsdp_state import FSDPState

    states = [reference() for reference in list(_module_state_mapping.values())]
    found: list[Any] = []
    for state in (state for state in states if isinstance(state, FSDPState)):
        if hasattr(state, "_fsdp_param_groups"):
            found += state._fsdp_param_groups
        elif state._fsdp_param_group is not None:  # torch 2.11
            found.append(state._fsdp_param_group)
    return found


def refuse_gathered(parameters: Sequence[Parameter]) -> None:
    """Raise ValueError for what FSDP has gathered for a forward pass: it will throw that away."""
    gathered = {id(getattr(held, "_unsharded_param", None)) for group in groups() for held in group.fsdp_params}
    if any(id(p) in gathered for p in parameters):
        raise ValueError(
            "These parameters are gathered for a forward pass, and FSDP will throw them away: call the module's reshard() "
            "before you take its parameters()"
        )
