"""Tasks as users bring them: several inputs, a loss and a metric of their own, models that return objects."""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from cser_ray.tasks.base import Splits, TensorDataset, squared_errors
from cser_ray.tasks.splitting import splits_fingerprint


def split(inputs: Any, targets: Tensor) -> Splits:
    """64 samples to train on, 20 for each of the others."""

    def part(a: int, b: int) -> TensorDataset:
        own = {k: v[a:b] for k, v in inputs.items()} if isinstance(inputs, dict) else tuple(v[a:b] for v in inputs)
        return TensorDataset(own, targets[a:b])

    return Splits(part(0, 64), part(64, 84), part(84, 104))


class Curve:
    """R² of a regression with a tuple of inputs, an LSTM's, which vmap cannot express, among them."""

    name, description, model_name, batch_size, metric = "curve", "sums of sequences", "lstm-4", 4, "r2"

    def model(self) -> nn.Module:
        """Two inputs, in order."""
        return TwoInputs()

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Mean squared error."""
        return squared_errors(outputs, targets)

    def splits(self) -> Splits:
        """Drawn once."""
        generator = torch.Generator().manual_seed(5)
        sequence, offset = torch.randn(104, 5, 2, generator=generator), torch.randn(104, 1, generator=generator)
        return split((sequence, offset), sequence.sum((1, 2)) / 3 + offset[:, 0])

    def constant_loss(self) -> float:
        """Variance."""
        train: Any = self.splits().train
        return float(train.targets.var(correction=0))

    def content_hash(self) -> str:
        """Of all tensors."""
        return splits_fingerprint(self.splits())


class TwoInputs(nn.Module):
    """[b, t, 2], [b, 1] to [b]."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(2, 4, batch_first=True), nn.Linear(5, 1)

    def forward(self, sequence: Tensor, offset: Tensor) -> Tensor:
        last = self.lstm(sequence)[0][:, -1]
        return self.head(torch.cat([last, offset], -1)).squeeze(-1)  # type: ignore[no-any-return]


class Words:
    """A tiny GPT-2 on batches by name, which returns its loss; judged by perplexity, of which less is better."""

    name, description, model_name, batch_size, metric = "words", "the next of 11 words", "gpt2-tiny", 4, "perplexity"

    def model(self) -> nn.Module:
        """Without dropout."""
        from transformers import GPT2Config, GPT2LMHeadModel

        none = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
        return GPT2LMHeadModel(GPT2Config(vocab_size=11, n_positions=8, n_embd=8, n_layer=1, n_head=2, **none))

    def splits(self) -> Splits:
        """Each word is the one before plus 1 or 2."""
        generator = torch.Generator().manual_seed(6)
        words = torch.randint(1, 3, (104, 8), generator=generator).cumsum(1) % 11
        return split({"input_ids": words, "labels": words}, words)

    def constant_loss(self) -> float:
        """Words are equally frequent."""
        return float(torch.tensor(11.0).log())

    def content_hash(self) -> str:
        """Of all tensors."""
        return splits_fingerprint(self.splits())


class Both(NamedTuple):
    """What a model may return."""

    logits: Tensor
    hidden: Tensor


class Named(nn.Module):
    """Returns a named tuple."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(2, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Both:
        hidden = self.first(x).relu()
        return Both(self.second(hidden), hidden)


class Corners:
    """Classes of points, by a model that returns logits in a named tuple; nothing else is its own."""

    name, description, model_name, batch_size, classes = "corners", "which is largest", "mlp-5", 4, 3

    def model(self) -> nn.Module:
        """Of `Named`."""
        return Named()

    def splits(self) -> Splits:
        """Drawn once."""
        points = torch.randn(104, 2, generator=torch.Generator().manual_seed(7))
        return split({"x": points}, torch.cat([points, torch.zeros(104, 1)], 1).argmax(1))

    def constant_loss(self) -> float:
        """ln 3."""
        return 1.0986

    def content_hash(self) -> str:
        """Of all tensors."""
        return splits_fingerprint(self.splits())
