"""How long a process group lives: nobody here keeps one that was destroyed, and no default argument of torch's does.

A gloo group that is still there when Python ends may abort the process: its threads ask for an interpreter that is gone.
"""

import weakref

import torch.distributed as dist


def alive(group: "weakref.ref[dist.ProcessGroup]") -> "dist.ProcessGroup":
    """The process group; RuntimeError once it has been destroyed."""
    found = group()
    if found is None:
        raise RuntimeError("This communicator's process group was destroyed; build a new one, and a new optimizer")
    return found


def _let_go_of_the_world() -> None:
    """No default argument of torch's keeps the process group that there is when its module is first imported.

    torch.distributed.nn has such arguments, and checkpoints and compilers import it.
    """
    from torch.distributed.nn import functional

    for function in vars(functional).values():
        if any(isinstance(value, dist.ProcessGroup) for value in getattr(function, "__defaults__", None) or ()):
            kept = (None if isinstance(value, dist.ProcessGroup) else value for value in function.__defaults__)
            function.__defaults__ = tuple(kept)  # what it would be without a group: the default one


if dist.is_available():
    _let_go_of_the_world()
