"""Tensors in tuples and mappings: what a model may take, and what it may return."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

Tree = Any
"""A tensor, or a tuple or mapping of trees. What a model returns may hold None where it gave no tensor."""


class Outputs(dict[str, Any]):
    """What a model returned by name, as a mapping and as attributes: `outputs.logits` is `outputs["logits"]`."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"the model's outputs are {', '.join(self) or 'empty'}: there is no {name}") from None


def mapped(function: Callable[[Tensor], Any], tree: Tree) -> Tree:
    """The tree with the function's value in place of each tensor."""
    if isinstance(tree, Tensor):
        return function(tree)
    if isinstance(tree, Mapping):
        kind = Outputs if isinstance(tree, Outputs) else dict
        return kind((name, mapped(function, value)) for name, value in tree.items())
    return tuple(mapped(function, value) for value in tree) if isinstance(tree, tuple | list) else tree


def leaves(tree: Tree) -> Iterator[Tensor]:
    """The tensors of a tree, in its order."""
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, Mapping | tuple | list):
        for value in tree.values() if isinstance(tree, Mapping) else tree:
            yield from leaves(value)


def rebuilt(tree: Tree, tensors: Iterator[Tensor]) -> Tree:
    """The tree with the next of `tensors` in place of each of its own."""
    return mapped(lambda _: next(tensors), tree)


def stacked(trees: list[Tree]) -> Tree:
    """Trees alike in everything but values as one, with a leading axis."""
    return rebuilt(trees[0], (torch.stack(rows) for rows in zip(*map(leaves, trees), strict=True)))


def shapes(tree: Tree) -> Any:
    """What tells the shapes of two trees apart; a key of dictionaries."""
    if isinstance(tree, Tensor):
        return tree.shape
    if isinstance(tree, Mapping):
        return tuple((name, shapes(value)) for name, value in tree.items())
    return tuple(map(shapes, tree))


def as_arguments(inputs: Tree) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """How a model is called on these inputs: a mapping by its names, a tuple in its order, a tensor alone."""
    if isinstance(inputs, Mapping):
        return (), dict(inputs)
    return (tuple(inputs) if isinstance(inputs, tuple | list) else (inputs,)), {}


def as_tree(outputs: Any) -> Tree:
    """What a model returned: a tensor, a tuple, or `Outputs` of a mapping's or an object's tensors by name.

    What is neither, a cache or a flag, is left out of an object, and None in a tuple, which keeps its places.
    Raises TypeError where no tensor is left.
    """
    tree = _as_tree(outputs)
    if not any(True for _ in leaves(tree)):
        raise TypeError(
            f"a model returns a tensor, a tuple, or an object or mapping with tensors, and not {type(outputs).__name__}"
        )
    return tree


def _as_tree(value: Any) -> Tree:
    if isinstance(value, Tensor):
        return value
    if isinstance(value, bool | int | float):
        return torch.as_tensor(value)
    if isinstance(value, tuple | list) and not hasattr(value, "_asdict"):
        return tuple(map(_as_tree, value))
    named = value._asdict() if hasattr(value, "_asdict") else value
    if not isinstance(named, Mapping):
        named = getattr(value, "__dict__", {})
    found = {name: _as_tree(item) for name, item in named.items() if isinstance(item, Tensor | tuple | list)}
    found = {name: item for name, item in found.items() if any(True for _ in leaves(item))}
    return Outputs(found) if found else None
