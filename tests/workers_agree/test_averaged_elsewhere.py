"""Models whose gradients something else averages already, such as DistributedDataParallel, are refused."""

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from cser_ray.compressors import GRBS
from cser_ray.optimizers import CSEA
from tests.processes import run_processes
from tests.workers_agree.training import network, train


def test_a_model_inside_ddp_is_refused() -> None:
    """In the first step, before it moves anything: wrapped before the optimizer was built or after, overlapped or not."""

    def work() -> None:
        for wrapped_first in (True, False):
            for overlap in (True, False):
                model = network()
                wrapped: nn.Module = DistributedDataParallel(model) if wrapped_first else model
                optimizer = CSEA(wrapped.parameters(), reset_compressor=GRBS(4), overlap=overlap)
                before = nn.utils.parameters_to_vector(model.parameters()).detach()
                wrapped = wrapped if wrapped_first else DistributedDataParallel(model)
                with pytest.raises(RuntimeError, match=r"inside DistributedDataParallel.*Take the model itself"):
                    train(wrapped, optimizer, 1)
                assert torch.equal(nn.utils.parameters_to_vector(model.parameters()), before)

    run_processes(2, work)


def test_gradients_that_something_else_averages_are_noticed() -> None:
    """Whatever it is: a hook of one's own, here."""

    def work() -> None:
        model = network()
        optimizer = CSEA(model.parameters(), reset_compressor=GRBS(4))
        for p in model.parameters():
            p.register_hook(lambda g: dist.all_reduce(g.div_(2)) or g)
        with pytest.raises(RuntimeError, match="gradients of all workers were bitwise equal"):
            train(model, optimizer, 2)

    run_processes(2, work)


def test_a_first_batch_that_is_the_same_is_no_fault() -> None:
    """As where the loop begins with a batch of ones; only two in a row are no accident."""

    def work() -> None:
        model = network()
        optimizer = CSEA(model.parameters(), reset_compressor=GRBS(4))
        train(model, optimizer, 1, same_data=True)
        train(model, optimizer, 4)

    run_processes(2, work)
