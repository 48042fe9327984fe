import pytest
import torch
from torch import nn

from cser_ray.tasks import make_task
from cser_ray.tasks.models import build_model, check_model
from cser_ray.tasks.wide_resnet import WideResNet


def size(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(
    ("depth", "width", "classes", "expected"),
    [(40, 8, 10, 35_748_314), (28, 10, 10, 36_479_194), (40, 8, 100, 35_794_484)],
)
def test_wide_resnets_have_the_sizes_of_the_field(depth: int, width: int, classes: int, expected: int) -> None:
    """35.7 M and 36.5 M parameters on CIFAR-10, as in table 5 of arXiv 1605.07146."""
    with torch.device("meta"):
        assert size(WideResNet(depth, width, classes)) == expected


def test_group_norm_keeps_no_statistics() -> None:
    """A `-gn` model has no buffers and as many parameters as its twin."""
    group, batch = build_model("wrn-10-1-gn", 100), build_model("wrn-10-1", 100)
    assert not list(group.buffers())
    assert size(group) == size(batch)


@pytest.mark.parametrize("name", ["wrn-39-8", "wrn-4-1", "wrn-10-0"])
def test_a_wide_resnet_that_does_not_exist_is_refused(name: str) -> None:
    """The error says the rule of depth and width."""
    with pytest.raises(ValueError, match=rf"{name} does not exist: a wide ResNet's depth is 6N \+ 4"):
        build_model(name, 100)


def test_a_torchvision_classifier_gets_the_tasks_classes() -> None:
    """resnet18 with 20 outputs."""
    assert build_model("resnet18", 20)(torch.zeros(2, 3, 32, 32)).shape == (2, 20)


def test_a_model_with_auxiliary_heads_gives_logits_alone() -> None:
    """googlenet in training mode returns one tensor."""
    with torch.device("meta"):
        assert build_model("googlenet", 7)(torch.empty(2, 3, 64, 64)).shape == (2, 7)


@pytest.mark.parametrize(
    ("typo", "meant"), [("resnet5O", "resnet50"), ("ResNet-50", "resnet50"), ("wrn40-8", "wrn-40-8")]
)
def test_a_typo_names_close_matches(typo: str, meant: str) -> None:
    """The error proposes what was likely meant."""
    with pytest.raises(ValueError, match=rf"no model '{typo}': did you mean .*{meant}"):
        build_model(typo, 100)


def test_a_detector_is_no_classifier() -> None:
    """torchvision's other models are not offered."""
    with pytest.raises(ValueError, match="no model 'fasterrcnn_resnet50_fpn'"):
        build_model("fasterrcnn_resnet50_fpn", 100)


def test_a_model_for_other_images_is_refused_before_training() -> None:
    """A vision transformer for 224x224 does not take CIFAR's images, and the error says what does."""
    with pytest.raises(ValueError, match=r"'vit_b_16' does not take images of 32x32 .*: choose one that does"):
        make_task("cifar100", model="vit_b_16")


@pytest.mark.parametrize("name", ["resnet50", "regnet_y_400mf", "inception_v3", "wrn-16-4-gn"])
def test_checking_a_model_draws_no_random_number(name: str) -> None:
    """The global generator stands where it stood, so that a check moves no initialisation."""
    state = torch.get_rng_state()
    check_model(name, 10, 224)
    assert torch.get_rng_state().equal(state)


def test_a_regnet_is_checked_too() -> None:
    """Its constructor computes widths in tensors, which must be real ones."""
    check_model("regnet_y_400mf", 10, 64)
    with pytest.raises(ValueError, match="'regnet_y_400mf' does not take images of 0x0"):
        check_model("regnet_y_400mf", 10, 0)
