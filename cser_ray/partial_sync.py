"""Algorithm 3, partial synchronization, and the one line that tells error reset from error feedback.

Both families compress, average what was compressed and keep the residual r. Error feedback adds r to the *next message*:
it reaches the model H or more steps late, in one lump. Error reset adds r to the *model, at once*, and remembers in e how
far the worker has thereby moved from the others:

    error feedback:  x -= mean(C(p));      the residual r = p - C(p) waits outside the model
    error reset:     x -= mean(C(p)) + r;  e -= r
"""

from torch import Tensor

from cser_ray.communication.communicator import Communicator
from cser_ray.compressors.base import AgreeingCompressor, Compressor, SharedCompressor, start_average


def partial_sync(
    v: Tensor, compressor: Compressor, communicator: Communicator, call: int, name: str
) -> tuple[Tensor, Tensor]:
    """PSync(v, C) in two parts: the mean over workers of C(v) `[..., 1, d]`, and each worker's r = v - C(v) `[..., w, d]`.

    Their sum is the paper's v' (line 8). They are kept apart because the mean is bitwise equal on every worker, and what
    all workers share must be moved by it alone: sums that hold an r would drift apart in the last bits.

    Args:
        v: `[..., w, d]`, the vectors of the workers that live here; left as they are.
        compressor: C, keyed by `with_streams`; with its memory (`Remembered`), where it keeps something from call to call.
        communicator: reaches the other workers.
        call: counts the uses of this compressor: 1, 2, ...
        name: the ledger's entry that is charged, "gradient" or "reset".

    Source: CSER (arXiv 2007.13221), Algorithm 3.

    >>> import torch
    >>> from cser_ray.compressors import TopK
    >>> workers = torch.tensor([[4.0, 1.0], [2.0, 8.0]])
    >>> partial_sync(workers, TopK(2), Communicator(workers=2, group=None), 1, "gradient")
    (tensor([[2., 4.]]), tensor([[0., 1.],
            [2., 0.]]))
    """
    if isinstance(compressor, AgreeingCompressor):
        message = compressor.agree(v, communicator, call, name)
    else:
        message = compressor.compress(v, call)  # line 4
    r = message.residual()  # line 5
    return message.average(communicator, name), r  # line 7


def error_feedback_(
    v: Tensor, model: Tensor, sign: int, compressor: Compressor, communicator: Communicator, call: int, name: str
) -> None:
    """In place: model `[..., w or 1, d]` += sign * mean(C(v)), and v `[..., w, d]` becomes its residual v - C(v).

    Where all workers choose the same coordinates, nothing but those is touched. Other arguments as in `partial_sync`.
    """
    if isinstance(compressor, SharedCompressor):
        chosen = compressor.select(v, call)
        mean = start_average(chosen.take(v), communicator, name).wait()
        chosen.put_(v, v.new_zeros(()))
        chosen.add_(model, mean * sign)
    else:
        mean, residual = partial_sync(v, compressor, communicator, call, name)
        model.add_(mean, alpha=sign)
        v.copy_(residual)
