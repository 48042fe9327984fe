"""What processes really send: counts the tensors that reach torch.distributed's backends."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class Wire(TorchDispatchMode):
    """While it is open, the bytes of the tensors given to collectives, by the operator's name.

    DDP's reducer goes the same way, so that its average would be seen here.
    """

    def __init__(self) -> None:
        super().__init__()
        self.sizes: dict[str, list[int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "c10d":
            tensors = [t for t in torch.utils._pytree.tree_leaves(args[0]) if isinstance(t, torch.Tensor)]
            size = sum(t.numel() * t.element_size() for t in tensors)
            self.sizes.setdefault(func._overloadpacket._qualified_op_name, []).append(size)
        return func(*args, **(kwargs or {}))


@contextmanager
def counted() -> Iterator[dict[str, list[int]]]:
    """Sizes in bytes of all collectives in the block, by operator."""
    with Wire() as wire:
        yield wire.sizes
