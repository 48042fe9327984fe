"""Compressors as text: what a text means, and how much of a compressor a ratio asks for."""

import re
import subprocess
import sys
from dataclasses import replace
from math import log
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import Parameter

from cser_ray.communication.communicator import Communicator
from cser_ray.communication.wire import dense_bytes
from cser_ray.compressors import COMPRESSORS, ChunkedTopK, TwoWay
from cser_ray.compressors.formats import VALUE_FORMATS
from cser_ray.compressors.solve import flat_width, nearest, own_ratio, shown
from cser_ray.compressors.text import FAMILIES, FORMAT_NAMES, TWO_WAY, TWO_WAY_FAMILY, Kind, parse
from cser_ray.config import BLOCK_ORDERS
from cser_ray.optimizers import CSER, EFSGD, Placement
from cser_ray.registry import UnknownNameError
from cser_ray.structure import num_blocks

D = 4_800_000
SIZED = ("grbs", "top-k", "shared-top", "sign")


@st.composite
def texts(draw: st.DrawFn) -> str:
    """A text that means something: a name, and perhaps a number and a format."""
    orders = [f"grbs-{order}" for order in BLOCK_ORDERS if order != "random"]
    name = draw(st.sampled_from(["grbs", *orders, *(f for f in FAMILIES if "/" not in f)]))
    family = "grbs" if name.startswith("grbs") else name
    size = f"/{draw(st.integers(2, 65536))}" if family in SIZED and draw(st.booleans()) else ""
    form = f":{draw(st.sampled_from(FAMILIES[family].formats))}" if draw(st.booleans()) else ""
    two_way = "@two-way" if family == "top-k" and size and draw(st.booleans()) else ""
    return f"{name}{size}{form}{two_way}"


@given(texts())
@settings(deadline=None)
def test_a_text_comes_back(text: str) -> None:
    """The kind's own text means the same kind, and is its only one."""
    kind = parse(text)
    assert parse(str(kind)) == kind
    assert str(parse(str(kind))) == str(kind)


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("grbs:fp32", "grbs"),
        ("grbs-cyclic/512:bf16", "grbs-cyclic/512:bf16"),
        ("sign", "sign/4096"),
        ("top-k", "top-k"),
        ("top-k/4096:int2", "top-k/4096:int2"),
    ],
)
def test_one_text_for_each(text: str, canonical: str) -> None:
    """Defaults are left out, but for the sign's block, which decides what is sent."""
    assert str(parse(text)) == canonical


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("topk", "there is no compressor 'topk'; did you mean 'top-k'? Known: grbs, random-k"),
        ("grbs-cycle", "did you mean 'grbs-cyclic'?"),
        ("grbs-random", "Known: grbs, random-k"),
        ("grbs:fp16", "there is no value format 'fp16'; did you mean 'bf16'? Known: fp32, bf16, int8, int4, int2"),
    ],
)
def test_unknown_names_are_told_with_the_known_ones(text: str, said: str) -> None:
    """As everywhere in this package."""
    with pytest.raises(UnknownNameError) as error:
        parse(text)
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("sign:int8", "sign carries no format, as it sends signs, one bit each; write sign"),
        ("qsgd:int4", "qsgd carries no format, as it is a value format of its own"),
        ("qsgd/3", "qsgd takes no number; write qsgd"),
        ("identity/3:int8", "identity takes no number; write identity"),
        ("top-k/1", "after the slash comes a whole number, 2 or more, as in top-k/4096"),
        ("grbs/", "after the slash comes a whole number, 1 or more, as in grbs/4096"),
        ("top-k:int8@two-way", "only chunked top-k goes two ways, as in top-k/4096@two-way; write top-k:int8"),
        ("top-k/100000", "a chunk holds 2 to 65536 coordinates, not 100000"),
    ],
)
def test_what_makes_no_sense_is_one_sentence(text: str, said: str) -> None:
    """With the text, the rule and the way out."""
    with pytest.raises(ValueError, match=r"^'") as error:
        parse(text)
    assert str(error.value) == f"{text!r}: {said}" or said in str(error.value)
    assert "\n" not in str(error.value)


def test_texts_cost_no_torch() -> None:
    """Settings are checked where torch is not loaded."""
    code = "import sys; from cser_ray.compressors.text import parse; parse('top-k/4096:int2'); print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


def test_both_tables_of_formats_have_the_same_names() -> None:
    """That of the texts, and that with what they are."""
    assert tuple(VALUE_FORMATS) == FORMAT_NAMES


@given(
    text=st.sampled_from(["grbs", "grbs:bf16", "grbs-cyclic:int4", "random-k:int8", "top-k", "top-k:int2"]),
    ratio=st.floats(8, 500),
    n=st.sampled_from([2, 3, 8]),
)
@settings(deadline=None, max_examples=60)
def test_the_ratio_asked_is_met(text: str, ratio: float, n: int) -> None:
    """Where k is fine enough, within a hundredth of what the bytes say."""
    found = parse(text).at(ratio, d=D, n=n)
    sent = found.bytes_per_call(flat_width(D), n)
    assert dense_bytes(D, n) / sent == pytest.approx(ratio, rel=0.01)


@given(
    text=st.sampled_from(["top-k/4096", "top-k/4096:int2", "top-k/64:bf16", "shared-top", "shared-top/256:int8"]),
    ratio=st.floats(8, 2000),
    n=st.sampled_from([2, 8]),
)
@settings(deadline=None, max_examples=60)
def test_whole_chunks_come_as_near_as_they_can(text: str, ratio: float, n: int) -> None:
    """One more or one less a chunk is no nearer; and what is 2 % off is not handed out."""
    found: Any = nearest(parse(text), ratio, D, n)
    off = {k: abs(log(own_ratio(replace(found, kept=k), D, n) / ratio)) for k in (found.kept, found.kept + 1)}
    if found.kept > 1:
        off[found.kept - 1] = abs(log(own_ratio(replace(found, kept=found.kept - 1), D, n) / ratio))
    assert min(off, key=lambda k: off[k]) == found.kept or min(off.values()) == off[found.kept]
    if abs(own_ratio(found, D, n) / ratio - 1) > 0.02:
        with pytest.raises(ValueError, match=f"cannot be met by {text} within 2 %"):
            parse(text).at(ratio, d=D, n=n)
    else:
        assert parse(text).at(ratio, d=D, n=n) == found


def test_the_nearest_is_named_with_its_compressor() -> None:
    """4 of every chunk of 4096 are 15 bytes: 8 d / (8 d 15 / 4096) = 273."""
    with pytest.raises(ValueError, match="R_C = 256") as error:
        parse("top-k/4096:int2").at(256, d=D, n=8)
    assert str(error.value) == (
        "R_C = 256 cannot be met by top-k/4096:int2 within 2 % at d = 4800000 and n = 8; the nearest is 273 "
        "(ChunkedTopK(kept=4, format='int2'))"
    )


def test_two_ways_cost_the_same_at_any_number_of_workers() -> None:
    """R_C = 4 d / V: 64 of every chunk are 4 * 4096 / 120 = 136.5, but for chunks that do not share out evenly."""
    kind = parse("top-k/4096:int2@two-way")
    assert [kind.at(136.5, d=D, n=n) for n in (2, 8)] == [TwoWay(ChunkedTopK(64, format="int2"))] * 2


def test_gathered_bytes_grow_with_the_workers() -> None:
    """R_C = 8 d / (n V): with four times the workers a quarter of the coordinates."""
    kept = [parse("top-k/4096:bf16").at(16, d=D, n=n) for n in (2, 8)]
    assert kept == [ChunkedTopK(292, format="bf16"), ChunkedTopK(73, format="bf16")]


@pytest.mark.parametrize(("ratio", "n"), [(0.5, 8), (float("nan"), 8), (float("inf"), 8), (16.0, 1)])
def test_impossible_questions_are_refused(ratio: float, n: int) -> None:
    """No ratio below 1 or without end, and none where there is nobody to send to."""
    with pytest.raises(ValueError, match=str(ratio) if n > 1 else "1 worker"):
        parse("top-k").at(ratio, d=D, n=n)


def test_another_packages_compressor_is_a_text_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """By its name; its argument `ratio` is turned until its bytes are those asked for."""
    monkeypatch.setattr(COMPRESSORS, "_others", {"sparse": None})
    monkeypatch.setitem(COMPRESSORS._entries, "sparse", COMPRESSORS["top-k"])
    kind = parse("sparse")
    assert kind == Kind("sparse")
    assert own_ratio(kind.at(16, d=D, n=8), D, 8) == pytest.approx(16, rel=0.02)
    with pytest.raises(ValueError, match="without size or format"):
        parse("sparse:int8")


def test_a_compressor_is_shown_as_it_is_written() -> None:
    """Without seeds and what else an optimizer adds."""
    assert shown(parse("grbs-cyclic").at(4, d=100, n=2)) == "GRBS(ratio=4, order='cyclic')"


LISTED = {**FAMILIES, f"top-k/4096{TWO_WAY}": TWO_WAY_FAMILY}


@pytest.mark.parametrize("name", LISTED)
@pytest.mark.parametrize("n", [2, 3, 8])
def test_the_bytes_of_the_listing_are_those_that_are_sent(name: str, n: int) -> None:
    """The formula that `cser-ray compressors` prints, worked out, and what leaves a worker by the ledger, in fp32."""
    d, ratio = 3 * 2**17, 8.0  # whole chunks and blocks for every n
    compressor: Any = nearest(parse(name), ratio, d, n)
    inner = getattr(compressor, "inner", compressor)
    known = {"d": d, "n": n, "r": ratio, "B": 1, "k": getattr(inner, "kept", 0)}
    if name == "shared-top":
        known["B"] = num_blocks(d)
    elif name in ("random-k", "top-k"):
        known["k"] = int(d / inner.ratio)
    formula = re.sub(r"(?<=[0-9a-zB)])\s+(?=[0-9a-zB(])", "*", LISTED[name].bytes)
    formula = re.sub(r"(?<=[0-9])(?=[a-zB(])", "*", formula)
    said = eval(formula, {}, known)
    optimizer = EFSGD(
        [Parameter(torch.ones(n, d))],
        gradient_compressor=compressor,
        placement=Placement(Communicator(n, None), stacked=True),
    )
    optimizer.step()
    sent = optimizer.communicator.ledger.entries["gradient"]
    assert sent.bytes == pytest.approx(said, rel=2e-3)
    assert sent.collectives == LISTED[name].collectives == parse(name).collectives


@pytest.mark.parametrize("name", [*LISTED, "grbs:bf16", "identity:int8"])
def test_the_memory_of_the_listing_is_what_cser_keeps(name: str) -> None:
    """Floats a parameter beside model, gradient and momentum, of each of four workers."""
    n, d = 4, 2**16
    placement = Placement(Communicator(n, None), stacked=True)
    compressor = nearest(parse(name), 8.0, d, n)
    optimizer = CSER([Parameter(torch.ones(n, d))], momentum=0.0, reset_compressor=compressor, placement=placement)
    kept = sum(b.numel() / n for b in optimizer.buffers().values()) + sum(
        b.numel() for b in optimizer.common_buffers().values()
    )
    kept += sum(each.memory.numel() / n for each in optimizer.remembered.values())
    whole, _, owned = (LISTED[name].memory if name in LISTED else "2: e and x_hat").partition(":")[0].partition(" + ")
    assert kept / d == int(whole) + (1 / n if owned else 0)
