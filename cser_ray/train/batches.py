"""The mini-batches of the workers in this process, step by step; on a GPU made at one launch.

Made eagerly, a batch of images that are cropped and flipped is some twenty launches: more of the processor's time than a
small model's whole step leaves it.
"""

import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from cser_ray.errors import CserWarning
from cser_ray.tasks.base import Dataset, Held
from cser_ray.train.evaluation import moved, place
from cser_ray.train.shards import Shards
from cser_ray.trees import Tree

Batch = tuple[Tree, Tree]


class Batches:
    """Inputs [rows, b, ...] and targets of a step, on `device`; numbers among them are of `dtype`.

    `generators`: one a row, for augmentation; they move on with each batch. `channels_last`: of the one row, for
    convolutions. `recorded`: where the samples are held on a GPU, a batch is made by a CUDA graph; it is then overwritten
    by the next one, in the order of the GPU's work.
    """

    def __init__(
        self,
        samples: Dataset,
        shards: Shards,
        generators: Sequence[torch.Generator],
        device: torch.device,
        dtype: torch.dtype,
        channels_last: bool = False,
        recorded: bool = False,
    ):
        self.samples = samples.to(device) if isinstance(samples, Held) else samples
        self.shards, self.generators, self.device, self.dtype = shards, generators, device, dtype
        self.channels_last = channels_last
        self.recorded = recorded and device.type == "cuda"
        self._record: Callable[[Tensor, Tensor | None], Batch] | None = None

    def at(self, step: int) -> Batch:
        """Of step 1, 2, ...; to be asked for in their order, since generators move on."""
        if not isinstance(self.samples, Held):
            return self._placed(*self.samples.batch(self.shards.indices(step), self.generators))
        index = self.shards.indices(step, self.device)
        drawn = self.samples.drawn(index, self.generators)
        if self.recorded and self._record is None:
            self._prepare(self.samples, index, drawn)
        return self._made(self.samples, index, drawn) if self._record is None else self._record(index, drawn)

    def _made(self, samples: Held, index: Tensor, drawn: Tensor | None) -> Batch:
        return self._placed(*samples.made(index, None if drawn is None else moved(drawn, self.device)))

    def _placed(self, inputs: Tree, targets: Tree) -> Batch:
        inputs, targets = (place(tree, self.device, self.dtype) for tree in (inputs, targets))
        if self.channels_last and isinstance(inputs, Tensor) and inputs.dim() == 5:
            inputs = inputs[0].contiguous(memory_format=torch.channels_last).unsqueeze(0)
        return inputs, targets

    def _prepare(self, samples: Held, index: Tensor, drawn: Tensor | None) -> None:
        """Record how batches of this shape are made; where that cannot be done, say why and go on as before."""
        try:
            self._record = _recorded(partial(self._made, samples), index, drawn)
        except Exception as error:  # a data set of somebody else's may do there what no graph can
            self.recorded = False
            reason = str(error).strip().split("\n")[0][:300] or type(error).__name__
            warnings.warn(
                f"Batches are made eagerly, not by a CUDA graph, and slower: {reason}", CserWarning, stacklevel=4
            )


def _recorded(
    made: Callable[[Tensor, Tensor | None], Batch], index: Tensor, drawn: Tensor | None
) -> Callable[[Tensor, Tensor | None], Batch]:
    """The function as a CUDA graph for arguments of these shapes; what it returns is overwritten by the next call."""
    own_index, own_drawn = index.clone(), None if drawn is None else drawn.to(index.device)
    beside: Any = torch.cuda.Stream(index.device)  # type: ignore[no-untyped-call]
    beside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(beside):  # allocates what a capture must not
        made(own_index, own_drawn)
    torch.cuda.current_stream().wait_stream(beside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):  # other threads look after NCCL's work
        batch = made(own_index, own_drawn)

    def launch(index: Tensor, drawn: Tensor | None) -> Batch:
        own_index.copy_(index)
        if own_drawn is not None and drawn is not None:
            own_drawn.copy_(drawn.pin_memory(), non_blocking=True)
        graph.replay()
        return batch

    return launch
