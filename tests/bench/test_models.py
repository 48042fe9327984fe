"""What is trained by `bench links` on a GPU: recorded stages do what the plain model does."""

import pytest
import torch

from cser_ray.bench.links.cases import make_cases
from cser_ray.bench.links.training import build_optimizer, ours
from cser_ray.bench.workloads import Workload, make_workload

pytestmark = pytest.mark.gpu

(CASE,) = (case for case in make_cases(["csea"], [8.0], {}) if case.method == "csea")


def trained(workload: Workload, record: bool) -> torch.Tensor:
    """The parameters after three steps."""
    torch.manual_seed(0)
    model = workload.fresh()
    optimizer = build_optimizer(CASE, model)
    if record:
        workload.record(model)
    for _ in range(3):
        optimizer.zero_grad(set_to_none=record)
        workload.backward(model)
        optimizer.step()
    return optimizer.x.clone()


@pytest.mark.parametrize("name", ["resnet18", "transformer"])
def test_recorded_stages_train_as_the_plain_model_does(name: str) -> None:
    """Under bf16 autocast, within its rounding; and training moves the parameters by far more than that."""
    workload = make_workload(name, torch.device("cuda"), 0)
    plain, recorded = (trained(workload, record) for record in (False, True))
    moved = (plain - build_optimizer(CASE, workload.fresh()).x).norm()
    assert (plain - recorded).norm() < 0.05 * moved


def test_channels_last_weights_stay_so_in_the_flat_vector() -> None:
    """Convolutions on a GPU then need no copies of them."""
    workload = make_workload("resnet18", torch.device("cuda"), 0)
    model = workload.fresh()
    build_optimizer(CASE, model)
    weights = [p for p in model.parameters() if p.dim() == 4 and p.shape[-1] > 1]
    assert weights
    assert all(p.is_contiguous(memory_format=torch.channels_last) for p in weights)


def test_a_step_does_not_wait_for_the_device() -> None:
    """By torch's own watch over synchronising calls; in steps 1, 2, 4 and 8 the guard looks at what the model does."""
    training = ours(CASE, make_workload("resnet18", torch.device("cuda"), 0))
    training.run(8)
    torch.cuda.set_sync_debug_mode("error")
    try:
        training.run(4)
    finally:
        torch.cuda.set_sync_debug_mode("default")
