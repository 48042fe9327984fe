"""A multilayer perceptron with BatchNorm: the model of the two smallest tasks."""

from itertools import pairwise

from torch import nn


def batchnorm_mlp(*widths: int) -> nn.Sequential:
    """Linear, BatchNorm and ReLU between the first widths, one linear layer to the last; input [b, widths[0]].

    A linear layer before BatchNorm has no bias, which BatchNorm would subtract again.
    """
    layers: list[nn.Module] = []
    for width, following in pairwise(widths[:-1]):
        layers += [nn.Linear(width, following, bias=False), nn.BatchNorm1d(following), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(widths[-2], widths[-1]))
