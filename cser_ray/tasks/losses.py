"""Losses and scores of single samples, from what models return: outputs and targets [rows, b, ...] to [rows, b]."""

from collections.abc import Mapping

from torch import Tensor, nn

from cser_ray.trees import Tree


def prediction(outputs: Tree) -> Tensor:
    """The logits, or predicted numbers, of what a model returned: itself, `.logits`, or the first of a tuple."""
    if isinstance(outputs, Mapping):
        if "logits" not in outputs:
            raise ValueError(
                f"the model returns {', '.join(outputs)} and no logits: give the task `losses(outputs, targets)` and a "
                "metric of its own"
            )
        return outputs["logits"]  # type: ignore[no-any-return]
    return outputs[0] if isinstance(outputs, tuple) else outputs  # type: ignore[no-any-return]


def losses(outputs: Tree, targets: Tensor) -> Tensor:
    """Cross-entropy of each sample [rows, b] in nats, from logits [rows, b, ..., classes] and targets [rows, b, ...].

    A text sample's loss is the mean over its positions. Where the model returns `.loss`, that: [rows], the mean of b.
    """
    if isinstance(outputs, Mapping) and "loss" in outputs:
        return outputs["loss"]  # type: ignore[no-any-return]
    outputs = prediction(outputs)
    flat = nn.functional.cross_entropy(outputs.flatten(0, -2), targets.flatten(), reduction="none")
    return flat.view(targets.shape).flatten(2).mean(2) if targets.dim() > 2 else flat.view(targets.shape)


def correct(outputs: Tree, targets: Tensor) -> Tensor:
    """Share of right answers of each sample [rows, b], in [0, 1]; shapes as in `losses`."""
    right = (prediction(outputs).argmax(-1) == targets).float()
    return right.flatten(2).mean(2) if targets.dim() > 2 else right


def squared_errors(outputs: Tree, targets: Tensor) -> Tensor:
    """Squared error of each sample [rows, b], the mean over what it holds. Raises ValueError where shapes differ."""
    return _per_sample(_difference(outputs, targets).square())


def absolute_errors(outputs: Tree, targets: Tensor) -> Tensor:
    """Absolute error of each sample [rows, b], the mean over what it holds. Raises ValueError where shapes differ."""
    return _per_sample(_difference(outputs, targets).abs())


def _difference(outputs: Tree, targets: Tensor) -> Tensor:
    predicted = prediction(outputs)
    if predicted.shape != targets.shape:  # [b, 1] less [b] would be [b, b]
        raise ValueError(
            f"the model predicts {list(predicted.shape[1:])} and the targets are {list(targets.shape[1:])}: give them one "
            "shape, as by .squeeze(-1) in the model"
        )
    return predicted - targets


def _per_sample(values: Tensor) -> Tensor:
    return values.flatten(2).mean(2) if values.dim() > 2 else values
