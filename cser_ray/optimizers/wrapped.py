"""Models that something else averages already: an optimizer of ours under it would send twice and save nothing."""

import gc
from collections.abc import Iterable

from torch.nn import Parameter
from torch.nn.parallel import DistributedDataParallel


def refuse_ddp(parameters: Iterable[Parameter]) -> None:
    """Raise RuntimeError where a living DistributedDataParallel holds one of the parameters.

    DDP leaves no mark on parameters, so that all objects are looked through, 0.1 s a million: only where it is suspected.
    """
    ours, kinds = {id(p) for p in parameters}, _with_subclasses(DistributedDataParallel)
    for found in [found for found in gc.get_objects() if type(found) in kinds]:
        if any(id(p) in ours for p in found.parameters()):
            raise RuntimeError(
                "The model is inside DistributedDataParallel, which averages all gradients densely every step: this "
                "optimizer would save nothing, and its replicas could not differ. Take the model itself in place of "
                "DDP(model); with Accelerate, leave the model out of prepare() (model.to(accelerator.device)); with "
                "Lightning, leave out strategy='ddp'"
            )


def _with_subclasses(kind: type) -> set[type]:
    found: set[type] = {kind}
    subclasses: list[type] = kind.__subclasses__()
    for subclass in subclasses:
        found |= _with_subclasses(subclass)
    return found
