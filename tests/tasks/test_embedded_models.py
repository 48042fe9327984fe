"""Many workers' models run side by side under `torch.func.vmap`: every embedded model must allow it."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap

from cser_ray.tasks import make_task
from cser_ray.tasks.wide_resnet import WideResNet

WORKERS, B = 3, 4
MODELS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor]]] = {
    "digits": (make_task("digits").model, lambda: torch.randn(WORKERS, B, 64)),
    "mnist1d": (make_task("mnist1d").model, lambda: torch.randn(WORKERS, B, 40)),
    "pytext": (make_task("pytext").model, lambda: torch.randint(0, 97, (WORKERS, B, 64))),
    "wrn-10-1": (lambda: WideResNet(10, 1, 100), lambda: torch.randn(WORKERS, B, 3, 32, 32)),
    "wrn-10-1-gn": (lambda: WideResNet(10, 1, 100, "group"), lambda: torch.randn(WORKERS, B, 3, 32, 32)),
}


def stacked(models: list[nn.Module], x: Tensor) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
    """Logits of all workers by one vmapped call, and the stacked parameters and buffers."""
    parameters, buffers = stack_module_state(models)
    base = copy.deepcopy(models[0]).to("meta")
    logits = vmap(lambda p, b, inputs: functional_call(base, (p, b), (inputs,)))(parameters, buffers, x)
    return logits, parameters, buffers


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", MODELS)
def test_stacked_models_give_the_logits_and_gradients_of_a_loop(name: str) -> None:
    """In training mode, without warnings of slow fallbacks: the same logits and gradients as worker by worker."""
    torch.manual_seed(0)
    make, draw = MODELS[name]
    models, x = [make() for _ in range(WORKERS)], draw()
    logits, parameters, _ = stacked(models, x)
    expected = torch.stack([model(inputs) for model, inputs in zip(models, x, strict=True)])
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)
    logits.square().mean().backward()
    expected.square().mean().backward()
    for key, parameter in parameters.items():
        grads = torch.stack([dict(model.named_parameters())[key].grad for model in models])
        torch.testing.assert_close(parameter.grad, grads, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", ["digits", "wrn-10-1"])
def test_stacked_models_keep_statistics_of_their_own(name: str) -> None:
    """BatchNorm's running statistics and counts move as in a loop."""
    torch.manual_seed(0)
    make, draw = MODELS[name]
    models, x = [make() for _ in range(WORKERS)], draw()
    _, _, buffers = stacked(models, x)
    for model, inputs in zip(models, x, strict=True):
        model(inputs)
    assert buffers
    for key, buffer in buffers.items():
        expected = torch.stack([dict(model.named_buffers())[key] for model in models])
        torch.testing.assert_close(buffer, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", MODELS)
def test_initialisation_follows_the_global_seed(name: str) -> None:
    """The same torch seed gives the same parameters, another seed others."""

    def parameters(seed: int) -> Tensor:
        torch.manual_seed(seed)
        return nn.utils.parameters_to_vector(MODELS[name][0]().parameters())

    assert parameters(1).equal(parameters(1))
    assert not parameters(1).equal(parameters(2))
