"""The direction of Muon's step: a matrix with its singular values brought near 1, by matrix products alone."""

import torch
from torch import Tensor

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the quintic whose slope at 0 is the steepest that still keeps singular values in about [0.5, 1.5]."""
ITERATIONS = 5
EPS = 1e-7
"""Least Frobenius norm by which a matrix is divided: one of zeros stays zeros."""


def computed_in(dtype: torch.dtype) -> torch.dtype:
    """bfloat16, as torch.optim.Muon does; float64 for parameters of float64, which ask for exactness and not for speed."""
    return dtype if dtype == torch.float64 else torch.bfloat16


def orthogonalised(matrices: Tensor) -> Tensor:
    """About U V^T of each matrix U S V^T in `[k, rows, columns]`, in the matrices' own type, as a new tensor.

    The same operations as in torch.optim.Muon, for all k matrices at once.

    Source: Jordan et al., Muon, kellerjordan.github.io/posts/muon, 2024; torch.optim.Muon.

    >>> skewed = torch.tensor([[[2.0, 1.0, 0.0], [0.0, 0.5, 0.0]]], dtype=torch.float64)
    >>> bool((torch.linalg.svdvals(orthogonalised(skewed)) - 1).abs().max() < 0.5)
    True
    """
    a, b, c = COEFFICIENTS
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if tall else matrices  # the product below is then the smaller of the two
    x = x / torch.linalg.vector_norm(x, dim=(-2, -1), keepdim=True).clamp(min=EPS)  # no singular value is above 1
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x
