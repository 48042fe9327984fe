"""When an optimizer is whole: after the outermost of its constructors, however many classes it has."""

from collections.abc import Callable
from functools import wraps
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cser_ray.optimizers.base import FlatOptimizer


def then_built(init: Callable[..., None]) -> Callable[..., None]:
    """A constructor behind which, where it is the outermost, `built()` is called: only then is the optimizer whole."""

    @wraps(init)
    def wrapped(self: "FlatOptimizer", *args: Any, **kwargs: Any) -> None:
        init(self, *args, **kwargs)
        if type(self).__init__ is wrapped:
            self.built()

    return wrapped
