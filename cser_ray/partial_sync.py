"""Algorithm 3, partial synchronization, and the one line that tells error reset from error feedback.

Both families compress, average what was compressed and keep the residual r. Error feedback adds r to the *next message*:
it reaches the model H or more steps late, in one lump. Error reset adds r to the *model, at once*, and remembers in e how
far the worker has thereby moved from the others:

    error feedback:  x -= mean(C(p));      the residual p - C(p) waits outside the model
    error reset:     x -= mean(C(p)) + r;  e -= r                    <- `partial_sync`
"""

from torch import Tensor

from cser_ray.communication.communicator import Communicator
from cser_ray.compressors.base import Compressor, SharedCompressor, start_average


def average_compressed(
    v: Tensor, compressor: Compressor, communicator: Communicator, call: int, name: str
) -> tuple[Tensor, Tensor]:
    """Lines 4-7: (mean over workers of C(v) `[..., 1, d]`, each worker's residual v - C(v) `[..., w, d]`).

    The mean is bitwise equal on every worker. `call` = 1, 2, ... counts the uses of this compressor; `name` is the
    ledger's entry. v `[..., w, d]` is left as it was.
    """
    message = compressor.compress(v, call)
    residual = message.residual()
    return message.average(communicator, name), residual


def error_feedback_(
    v: Tensor, model: Tensor, sign: int, compressor: Compressor, communicator: Communicator, call: int, name: str
) -> None:
    """In place: model `[..., w or 1, d]` += sign * mean(C(v)), and v `[..., w, d]` becomes its residual v - C(v).

    Where all workers choose the same coordinates, nothing but those is touched.
    """
    if isinstance(compressor, SharedCompressor):
        chosen = compressor.select(v, call)
        mean = start_average(chosen.take(v), communicator, name).wait()
        chosen.put_(v, v.new_zeros(()))
        chosen.add_(model, mean * sign)
    else:
        mean, residual = average_compressed(v, compressor, communicator, call, name)
        model.add_(mean, alpha=sign)
        v.copy_(residual)


def partial_sync(
    v: Tensor, compressor: Compressor, communicator: Communicator, call: int, name: str
) -> tuple[Tensor, Tensor]:
    """PSync(v, C): (v' = mean(C(v)) + r, r = v - C(v)), both `[..., w, d]`. The mean of v over workers is kept, for any C."""
    mean, residual = average_compressed(v, compressor, communicator, call, name)
    return mean + residual, residual
