"""Image models by name: `wrn-40-8`, `wrn-16-4-gn`, or any classifier that torchvision lists."""

import difflib
import re
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from cser_ray.tasks.wide_resnet import WideResNet


def build_model(name: str, classes: int) -> nn.Module:
    """Return an untrained model drawn from torch's global generator; raises ValueError for an unknown name.

    `wrn-DEPTH-WIDTH` is a wide ResNet with BatchNorm, with GroupNorm where `-gn` follows. Models with auxiliary heads
    (googlenet, inception_v3) are built without them, so that every model returns logits alone.
    """
    if wide := re.fullmatch(r"wrn-(\d+)-(\d+)(-gn)?", name):
        return WideResNet(int(wide[1]), int(wide[2]), classes, norm="group" if wide[3] else "batch")
    from torchvision import models

    known = models.list_models(module=models)  # of this module: the classifiers, not the detectors
    if name not in known:
        close = difflib.get_close_matches(name.lower(), [*known, "wrn-40-8", "wrn-28-10", "wrn-16-4"])
        raise ValueError(
            f"there is no model {name!r}{': did you mean ' + ' or '.join(close) + '?' if close else '.'} A model is "
            "wrn-DEPTH-WIDTH (with -gn for GroupNorm) or a classifier of torchvision.models.list_models()"
        )
    heads = {"aux_logits": False, "init_weights": True} if name in ("googlenet", "inception_v3") else {}
    return models.get_model(name, weights=None, num_classes=classes, **heads)  # type: ignore[no-any-return]


def check_model(name: str, classes: int, side: int) -> None:
    """Raise ValueError unless the model exists and takes images [2, 3, side, side]; costs no memory for weights."""
    with _WithoutWeights():
        model = build_model(name, classes).to("meta")
    try:
        model(torch.empty(2, 3, side, side, device="meta"))
    except (RuntimeError, ValueError, AssertionError) as error:
        raise ValueError(
            f"the model {name!r} does not take images of {side}x{side} ({error}): choose one that does, "
            f"for instance {'wrn-40-8 or resnet18' if side < 64 else 'resnet50'}"
        ) from error


class _WithoutWeights(TorchFunctionMode):
    """Layers allocate their weights on the meta device; what a constructor computes in tensors, as regnets do, is real."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        given = dict(kwargs or {})
        if func is torch.empty and given.get("device") is None:
            given["device"] = "meta"
        return func(*args, **given)
