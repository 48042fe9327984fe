"""Keeps the averaged models of a trial's runs when it ends: those that the last evaluation scored, bit for bit."""

import json
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch.distributed as dist
from torch import Tensor, nn

from cser_ray.errors import CserWarning
from cser_ray.registry import unknown
from cser_ray.scale import ACCURACY, scale_of
from cser_ray.store.models import FACTS, SMALL, ModelStore, encode
from cser_ray.store.rows import RunRow
from cser_ray.train.logistics import KEEP_MODELS
from cser_ray.train.record import Record
from cser_ray.train.stack import Stack


@dataclass(frozen=True)
class KeptModels:
    """Which models of a trial to keep (a word of `KEEP_MODELS`), and in which results folder."""

    uri: str
    keep: str = "auto"

    def __post_init__(self) -> None:
        if self.keep not in KEEP_MODELS:
            raise unknown("way to keep models", self.keep, KEEP_MODELS)

    def write(self, stack: Stack, record: Record) -> None:
        """Write the models of a trial that has ended, before its rows: a finished run has its model.

        One that cannot be written is named in a CserWarning: a result is worth more than its model.
        """
        group = stack.communicator.group
        if self.keep == "none" or (group is not None and dist.get_rank(group)):
            return
        averaged = record.averaged
        assert averaged is not None
        module = stack.workers.module
        store = ModelStore(self.uri)
        size = sum(tensor.nbytes for tensor in state_dict(module, *averaged, 0).values())
        try:
            for run in to_keep(record.run_rows, size, self.keep):
                row = record.run_rows[run]
                data = encode(state_dict(module, *averaged, run), facts(row, module))
                store.write(row.run_id, data)
        except OSError as error:
            text = f"Models of {record.identity.trial_id} were not kept: {error}"
            warnings.warn(text, CserWarning, stacklevel=3)


def to_keep(rows: Sequence[RunRow], size: int, keep: str) -> list[int]:
    """Places of the runs whose models, of `size` bytes each, are kept; never of one that diverged.

    Where `auto` keeps one only, it is the first repeat of the learning rate with the fewest diverged repeats, then the
    lowest mean validation loss.
    """
    converged = [place for place, row in enumerate(rows) if not row.diverged]
    if keep == "all" or size * len(rows) <= SMALL or not converged:
        return converged
    rates: dict[float, list[int]] = {}
    for place in converged:
        rates.setdefault(rows[place].lr, []).append(place)

    def rank(places: list[int]) -> tuple[int, float]:
        return -len(places), sum(rows[place].val_loss or 0.0 for place in places) / len(places)

    return min(rates.values(), key=rank)[:1]


def state_dict(
    module: nn.Module, parameters: dict[str, Tensor], buffers: dict[str, Tensor], run: int
) -> dict[str, Tensor]:
    """The state_dict of `module` with the values of one run, out of stacks `[runs, ...]`; on the CPU, no shared memory."""
    names = {id(t): name for name, t in (*module.named_parameters(), *module.named_buffers())}  # a tied tensor has one
    values = parameters | buffers
    return {
        name: values[names[id(tensor)]][run].detach().cpu().clone().contiguous()
        for name, tensor in module.state_dict(keep_vars=True).items()
    }


def facts(row: RunRow, module: nn.Module) -> dict[str, str]:
    """What to know of a run's model, as text: what it is, what it reached, and how to build its module."""
    config: dict[str, Any] = json.loads(row.config_json or "{}")
    options = {name: config[name] for name in ("model", "coarse_labels") if config.get(name)}
    given = "".join(f", {name}={value!r}" for name, value in options.items())
    if config.pop("data_dir", ""):  # a path of this machine is nobody else's business
        given += ', data_dir="..."'
    told = scale_of(vars(row))
    own = {} if told == ACCURACY else {name: str(value) for name, value in told.columns().items() if value is not None}
    return (
        {name: str(getattr(row, name)) for name in FACTS}
        | own
        | {
            "module": str(module),
            "build": f"from cser_ray.tasks import make_task; module = make_task({row.task!r}{given}).model()",
            "config": json.dumps(config, sort_keys=True),
        }
    )
