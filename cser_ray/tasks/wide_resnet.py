"""Wide residual networks for 32x32 images: the CIFAR model of the CSER paper (WRN-40-8).

Zagoruyko and Komodakis, "Wide Residual Networks", arXiv 1605.07146: depth 6N + 4, three stages of N blocks of two 3x3
convolutions, each behind normalisation and ReLU, with 16, 32 and 64 channels times the width.
"""

from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

Norm = Literal["batch", "group"]


def normalisation(norm: Norm, channels: int) -> nn.Module:
    """BatchNorm, or GroupNorm with 8 groups, which keeps no statistics for workers to disagree about."""
    return nn.BatchNorm2d(channels) if norm == "batch" else nn.GroupNorm(8, channels)


def convolution(fan_in: int, fan_out: int, size: int, stride: int) -> nn.Conv2d:
    """A convolution without bias, which the normalisation behind it would subtract; He initialisation, fan out."""
    layer = nn.Conv2d(fan_in, fan_out, size, stride, padding=size // 2, bias=False)
    nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    return layer


class ResidualBlock(nn.Module):
    """[b, fan_in, s, s] to [b, fan_out, s/stride, s/stride], with a 1x1 convolution on the skip where shapes change."""

    def __init__(self, fan_in: int, fan_out: int, stride: int, norm: Norm) -> None:
        super().__init__()
        self.norm1 = normalisation(norm, fan_in)
        self.conv1 = convolution(fan_in, fan_out, 3, stride)
        self.norm2 = normalisation(norm, fan_out)
        self.conv2 = convolution(fan_out, fan_out, 3, 1)
        self.skip = convolution(fan_in, fan_out, 1, stride) if fan_in != fan_out or stride != 1 else None

    def forward(self, x: Tensor) -> Tensor:
        active = F.relu(self.norm1(x))
        out = self.conv2(F.relu(self.norm2(self.conv1(active))))
        return out + (x if self.skip is None else self.skip(active))  # type: ignore[no-any-return]


class WideResNet(nn.Module):
    """WRN-depth-width: logits [b, classes] from images [b, 3, s, s]; `depth` is 6N + 4 (10, 16, 22, 28, ...)."""

    def __init__(self, depth: int, width: int, classes: int, norm: Norm = "batch") -> None:
        super().__init__()
        if depth < 10 or (depth - 4) % 6 or width < 1:
            raise ValueError(
                f"wrn-{depth}-{width} does not exist: a wide ResNet's depth is 6N + 4 (10, 16, 22, 28, 34, 40, ...) "
                "and its width 1 or more"
            )
        layers: list[nn.Module] = [convolution(3, 16, 3, 1)]
        channels = 16
        for stage in range(3):
            for block in range((depth - 4) // 6):
                stride = 2 if stage > 0 and block == 0 else 1
                layers.append(ResidualBlock(channels, 16 * 2**stage * width, stride, norm))
                channels = 16 * 2**stage * width
        self.features = nn.Sequential(*layers, normalisation(norm, channels), nn.ReLU())
        self.classifier = nn.Linear(channels, classes)
        nn.init.zeros_(self.classifier.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x).mean((2, 3)))  # type: ignore[no-any-return]
