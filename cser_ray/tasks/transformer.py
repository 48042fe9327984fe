"""A small causal transformer in plain matrix products.

Attention is written out: `scaled_dot_product_attention` on a CPU falls back to a loop, and warns, under
`torch.func.vmap`, which is how many workers' models run side by side. No dropout, so that a worker's step depends on
its samples alone; ReLU, because GELU alone took a quarter of a step on a CPU.
"""

import torch
from torch import Tensor, nn


class Attention(nn.Module):
    """Causal self-attention: [b, t, width] to [b, t, width]."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"width {width} does not divide into {heads} heads: take a multiple of {heads}")
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        b, t, width = x.shape
        q, k, v = self.qkv(x).view(b, t, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        future = torch.full((t, t), -torch.inf, dtype=x.dtype, device=x.device).triu(1)
        scores = (q * (width // self.heads) ** -0.5) @ k.transpose(-2, -1) + future
        mixed = scores.softmax(-1) @ v
        return self.out(mixed.transpose(1, 2).reshape(b, t, width))  # type: ignore[no-any-return]


class TransformerBlock(nn.Module):
    """Attention and a two-layer perceptron, each behind LayerNorm and beside a skip connection."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.attention = nn.Sequential(nn.LayerNorm(width), Attention(width, heads))
        self.mlp = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(x)
        return x + self.mlp(x)  # type: ignore[no-any-return]


class Transformer(nn.Module):
    """Next-symbol logits [b, t, symbols] from symbols int64 [b, t], t <= `length`."""

    def __init__(self, symbols: int, length: int, width: int, heads: int, layers: int, hidden: int) -> None:
        super().__init__()
        self.symbol = nn.Embedding(symbols, width)
        self.position = nn.Parameter(torch.randn(length, width))
        self.blocks = nn.Sequential(*(TransformerBlock(width, heads, hidden) for _ in range(layers)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, symbols)

    def forward(self, symbols: Tensor) -> Tensor:
        x = self.symbol(symbols) + self.position[: symbols.shape[-1]]
        return self.head(self.norm(self.blocks(x)))  # type: ignore[no-any-return]
