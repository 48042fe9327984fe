"""AdaComp: of each bin of a layer, whatever one more gradient would lift above the bin's largest (Chen et al. 2018)."""

from collections.abc import Iterable
from itertools import pairwise
from typing import Any, Unpack

import torch
from torch import Tensor

from cser_ray.compressors.gathered import in_blocks, pack, per_coordinate, unpack
from cser_ray.optimizers.arguments import Common
from cser_ray.optimizers.base import FlatOptimizer


class AdaComp(FlatOptimizer):
    """How much is sent follows the gradients: sign and place of what reaches its bin's maximum, one scale a layer.

    With the residue r, G = r + g and H = G + g: coordinate j is sent where |H_j| >= max |G| over its bin, as sign(G_j)
    times the mean of those maxima over the layer; r = G minus what was sent. Residues are in gradient units; momentum and
    weight decay come after the mean. Models stay equal.

    Messages are all-gathered, each a scale a layer and an int32 a coordinate (the paper packs places into 8 or 16 bits),
    filled up to the longest one. So a step has two collectives, the first of which says how long that is, and stacked runs
    are filled up together.

    Args:
        params, lr, momentum, weight_decay: as in torch.optim.SGD; these and further ones by name: see `FlatOptimizer`.
        bin_size: L, coordinates of a bin; 500 in the paper for fully connected and recurrent layers.
        convolution_bin_size: the same for parameters of three dimensions or more; 50 in the paper.

    Raises:
        ValueError: besides what `FlatOptimizer` raises, for bins of no coordinate, and models past 2^30 parameters.

    Source: Chen et al., arXiv 1712.02679, Algorithm 2; read in an independent implementation as an operator of MXNet
    (ada_comp-inl.h), which agrees.

    >>> model = torch.nn.Linear(4, 2)
    >>> optimizer = AdaComp(model.parameters(), lr=0.1)
    >>> model(torch.ones(1, 4)).sum().backward()
    >>> optimizer.step()
    """

    models_equal = True

    def __init__(
        self,
        params: Iterable[Any],
        *args: float,
        bin_size: int = 500,
        convolution_bin_size: int = 50,
        **common: Unpack[Common],
    ):
        if bin_size < 1 or convolution_bin_size < 1:
            raise ValueError(f"A bin holds at least one coordinate, not {bin_size} or {convolution_bin_size}")
        super().__init__(params, *args, **common)
        if self.flat.numel >= 2**30:
            raise ValueError(f"Places are sent as int32 with a sign: at most 2^30 parameters, not {self.flat.numel}")
        self.bin_size, self.convolution_bin_size = bin_size, convolution_bin_size
        dimensions = [p.dim() - self.flat.stacked for p in self.flat.parameters]
        self._layers = [
            (slice(start, stop), convolution_bin_size if dim >= 3 else bin_size)
            for (start, stop), dim in zip(pairwise(self.flat.offsets), dimensions, strict=True)
            if start < stop
        ]
        self.e = torch.zeros_like(self.x)

    def update(self, x: Tensor, g: Tensor, t: int) -> None:
        d, layers = self.flat.numel, len(self._layers)
        residue = self.e.add_(g)  # G
        lifted = residue + g  # H
        scales = x.new_empty(*x.shape[:-1], layers)
        sent = torch.zeros(*x.shape[:-1], d, dtype=torch.bool, device=x.device)
        for number, (s, size) in enumerate(self._layers):
            largest = in_blocks(residue[..., s].abs(), size).amax(-1)
            scales[..., number] = largest.mean(-1)
            # of a bin of zeros nothing is sent: all of it would be
            edge = per_coordinate(torch.where(largest > 0, largest, torch.inf), size, s.stop - s.start)
            sent[..., s] = lifted[..., s].abs() >= edge
        messages = self._gathered(sent, residue[..., :d] < 0, scales)
        mine = self.communicator.worker_ids
        self.e[..., :d] -= self._decoded(messages[..., mine.start : mine.stop, :])
        total = self._decoded(messages[..., :1, :])
        for worker in range(1, self.communicator.size):  # one after the other: the same sum on every process
            total += self._decoded(messages[..., worker : worker + 1, :])
        mean = torch.zeros_like(x)
        mean[..., :d] = total.div_(self.communicator.size)
        self.local_step_(x, mean)

    def _gathered(self, sent: Tensor, negative: Tensor, scales: Tensor) -> Tensor:
        """Everybody's message `[..., n, bytes]`: the scales, then twice each place, plus one for a minus; -1 fills up."""
        counts = sent.sum(-1, keepdim=True, dtype=torch.int32)
        most = max(1, int(self.communicator.all_gather(counts, "gradient").max()))  # none at all could not be unpacked
        codes = 2 * torch.arange(sent.shape[-1], dtype=torch.int32, device=sent.device) + negative
        slots = torch.where(sent, sent.cumsum(-1) - 1, most)  # what is not sent goes behind the end
        entries = codes.new_full((*sent.shape[:-1], most + 1), -1).scatter_(-1, slots, codes)
        return self.communicator.all_gather(pack(scales, entries[..., :most]), "gradient")

    def _decoded(self, messages: Tensor) -> Tensor:
        """What messages `[..., j, bytes]` stand for, `[..., j, d]`."""
        layers, d = len(self._layers), self.flat.numel
        most = (messages.shape[-1] - layers * self.x.element_size()) // 4
        scales, entries = unpack(messages, (self.x.dtype, layers), (torch.int32, most))
        sign = scales.new_zeros(*scales.shape[:-1], d + 1)  # what fills up goes into the last place
        places = torch.where(entries < 0, d, entries >> 1).long()
        sign.scatter_(-1, places, torch.where(entries & 1 == 1, -1.0, 1.0).to(sign))
        for number, (s, _) in enumerate(self._layers):
            sign[..., s] *= scales[..., number : number + 1]
        return sign[..., :d]

    def flush_error_(self) -> None:
        self.e.zero_()  # in gradient units, and of steps that are past

    def buffers(self) -> dict[str, Tensor]:
        return super().buffers() | {"error": self.e}
