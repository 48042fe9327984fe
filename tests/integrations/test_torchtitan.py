"""torchtitan's container with an optimizer of ours in it, 2 hosts of 2 shards. Its trainer needs GPUs, and is not run."""

from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard

from cser_ray import CSER, GRBS
from cser_ray.flat import local
from tests.processes import run_processes

pytest.importorskip("torchtitan")
integration = pytest.importorskip("cser_ray.integrations.torchtitan")
from torchtitan.components.optimizer import ParamGroupConfig  # noqa: E402

GIVEN: dict[str, Any] = {
    "reset_interval": 3,
    "reset_compressor": GRBS(2),
    "gradient_compressor": GRBS(4),
    "betas": (0.9, 0.95),
}


def titans_mesh() -> DeviceMesh:
    """As torchtitan makes it: cut out of a mesh of one dimension."""
    return init_device_mesh("cpu", (4,), mesh_dim_names=("world",))._unflatten(0, (2, 2), ("dp_replicate", "fsdp"))


def network(mesh: DeviceMesh) -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 7), nn.Tanh(), nn.Linear(7, 1)).double()
    fully_shard(model, mesh=mesh)
    return model


def container(model: nn.Module, name: str = "CSER") -> Any:
    groups = [
        ParamGroupConfig(pattern="bias$", optimizer_name=name, optimizer_kwargs={"lr": 0.01, "weight_decay": 0.0}),
        ParamGroupConfig(pattern=".*", optimizer_name=name, optimizer_kwargs={"lr": 0.01, "weight_decay": 0.1}),
    ]
    config = integration.FlatOptimizersContainer.Config(
        param_groups=groups, optimizer_factory_kwargs_by_name={name: GIVEN}
    )
    return config.build(model_parts=[model])


def backward(model: nn.Module, t: int, processes: int) -> None:
    """The loss of this process's part of a batch, divided by the samples of so many processes."""
    numbers = torch.randn(4, 5, generator=torch.Generator().manual_seed(10 * t + dist.get_rank()), dtype=torch.float64)
    ((model(numbers[:, :4]) - numbers[:, 4:]).square().sum() / (4 * processes)).backward()


def test_it_trains_as_the_optimizer_alone() -> None:
    """Gradients that torchtitan divides by the tokens of all hosts are those of a host again; state is taken back."""

    def work() -> None:
        mesh = titans_mesh()
        model, plain = network(mesh["fsdp"]), network(mesh["fsdp"])
        for module in model.modules():
            if isinstance(module, FSDPModule):
                module.set_gradient_divide_factor(1.0)
                module.set_force_sum_reduction_for_comms(True)
        optimizers = container(model)
        by_name = dict(plain.named_parameters())
        groups = [
            {"params": [p for n, p in by_name.items() if n.endswith("bias")], "weight_decay": 0.0},
            {"params": [p for n, p in by_name.items() if not n.endswith("bias")], "weight_decay": 0.1},
        ]
        alone = CSER(groups, lr=0.01, communicator=optimizers.flat.communicator, **GIVEN)
        for t in range(9):
            if t == 5:  # as a checkpoint would
                saved = optimizers.state_dict()
                assert {"state.0.weight.exp_avg", "param_groups.0.bias.lr", "cser_ray"} <= saved.keys()
                held = [local(p).detach().clone() for p in optimizers.flat.flat.parameters]
                saved = {n: v.clone() if isinstance(v, torch.Tensor) else v for n, v in saved.items()}
                optimizers = container(model)
                with torch.no_grad():
                    for p, value in zip(optimizers.flat.flat.parameters, held, strict=True):
                        local(p).copy_(value)
                optimizers.load_state_dict(saved)
            optimizers.zero_grad()
            backward(model, t, 4)
            optimizers.step()
            alone.zero_grad()
            backward(plain, t, 1)
            alone.step()
        assert optimizers.flat.t == 9
        assert (optimizers.flat.x - alone.x).abs().max() < 1e-12
        with optimizers.averaged_parameters():
            pass

    run_processes(4, work, 120)


def test_what_it_cannot_train_is_refused() -> None:
    """Both of FSDP's dimensions, as torchtitan shards by default; and torch's own optimizers."""

    def work() -> None:
        mesh = titans_mesh()
        with pytest.raises(ValueError, match=r"fully_shard got a mesh of 2 dimensions and averages"):
            container(network(mesh))
        with pytest.raises(ValueError, match=r"AdamW is no optimizer of cser_ray.optimizers"):
            container(network(mesh["fsdp"]), "AdamW")

    run_processes(4, work, 60)
