"""Bytes that a stranger may have written, and a watch that sees what a reader would run for them."""

import json
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from cser_ray.errors import CserWarning

RUNS_CODE = {"pickle.find_class", "os.system", "subprocess.Popen", "os.exec", "os.posix_spawn", "shutil.rmtree"}
"""Audit events of what an attacker would have a reader do."""
BOMB = b"cos\nsystem\n(S'true'\ntR."
NESTED = b"[" * 200_000
watched: list[str] | None = None


def watch(event: str, arguments: Any) -> None:
    """Audit hooks stay for ever, so this one listens only when asked."""
    if watched is not None and event in RUNS_CODE:
        watched.append(event)


sys.addaudithook(watch)


@contextmanager
def no_code() -> Iterator[None]:
    """Inside, nothing may be run that only a file can have asked for."""
    global watched
    watched = []
    try:
        yield
    finally:
        seen, watched = watched, None
    assert not seen, seen


@st.composite
def mutations(draw: st.DrawFn, data: bytes) -> bytes:
    """The bytes with some of them changed, cut out, doubled or replaced; or others altogether."""
    if draw(st.integers(0, 9)) == 0:
        return draw(st.binary(max_size=200))
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, max(len(data) - 1, 0)))
        stop = min(len(data), start + draw(st.one_of(st.integers(0, 40), st.just(len(data)))))
        put = draw(st.one_of(st.binary(max_size=20), st.just(b""), st.just(data[start:stop] * 2)))
        data = data[:start] + put + data[stop:]
    return data


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


def mutated_json(value: Any) -> st.SearchStrategy[Any]:
    """The value with one of its leaves, or a branch, replaced by anything JSON can say."""

    @st.composite
    def mutate(draw: st.DrawFn) -> Any:
        copy = json.loads(json.dumps(value))
        at = copy
        while True:
            keys = list(at) if isinstance(at, dict) else list(range(len(at)))
            key = draw(st.sampled_from(keys))
            if isinstance(at[key], dict | list) and at[key] and draw(st.booleans()):
                at = at[key]
                continue
            if isinstance(at, dict) and draw(st.integers(0, 3)) == 0:
                del at[key]
            else:
                at[key] = draw(json_values)
            return copy

    return mutate()


often = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def value_or(errors: type[Exception] | tuple[type[Exception], ...], read: Callable[[], object]) -> None:
    """Reads without code, and with no other error; a file that is left out is named in a warning of ours."""
    with no_code(), warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.simplefilter("ignore", CserWarning)
        with suppress(*errors if isinstance(errors, tuple) else (errors,)):
            read()
