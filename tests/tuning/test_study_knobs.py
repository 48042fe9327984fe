"""Knobs beside the structure: every one that a method reads is searched, with as many runs as any method has."""

import math
import re
from dataclasses import asdict
from typing import Any

import pytest

from cser_ray.config import config_at
from cser_ray.knobs import KNOBS, Knobs, crossed, read_by
from cser_ray.methods import METHODS, has_ratio
from cser_ray.structure import Structure
from cser_ray.train.build import own_arguments
from tuning.execute.single import single_config
from tuning.study.searchers import SEARCHERS, Wanted, points_of
from tuning.study.stages import total_runs
from tuning.study.study import Study


def points(study: Study, method: str, ratio: float) -> list[tuple[Structure, Knobs]]:
    return [(each.structure, each.knobs) for each in study.candidates(method, ratio)]


def test_the_first_candidate_has_the_first_of_each() -> None:
    """One candidate is what a study without these knobs tries."""
    study = Study(methods=("diloco", "partial-reset", "csea"), ratios=(16.0,), residuals=(0.5, 0.1), delays=(3, 0))
    found = {method: points(study, method, 16.0)[0][1] for method, _ in study.cells()}
    assert found == {
        "diloco": Knobs(),
        "partial-reset": Knobs(residual_in_model=0.5, reset_delay=3),
        "csea": Knobs(reset_delay=3),
    }


def test_diloco_is_tuned_over_outer_pairs_like_anybody_else() -> None:
    """With as many runs as a method that has structures to search; what is left goes to learning rates."""
    study = Study(methods=("sgd", "diloco", "cser"), ratios=(16.0,), trials=5, outer=("0.7/0.9", "1/0"))
    candidates = study.candidates("diloco", 16.0)
    assert [(c.knobs.outer_lr, c.knobs.outer_momentum) for c in candidates[:2]] == [(0.7, 0.9), (1.0, 0.0)]
    assert len(candidates) == len(study.candidates("cser", 16.0)) == 5
    assert {c.lrs for c in candidates[:2]} == {study.lrs}
    assert not {lr for c in candidates[2:] for lr in c.lrs} & set(study.lrs)
    alone = [Study(methods=(m,), ratios=(16.0,), trials=5) for m in ("diloco", "cser")]
    assert total_runs(alone[0]) == total_runs(alone[1])


def test_mulocos_own_outer_step_comes_first_where_nobody_names_any() -> None:
    """In place of DiLoCo's, so that both try as many; a list that is given holds for all; and so with a single run."""
    first = {
        m: points(Study(methods=("diloco", "muloco"), ratios=(16.0,)), m, 16.0)[0][1] for m in ("diloco", "muloco")
    }
    assert [(k.outer_lr, k.outer_momentum) for k in first.values()] == [(0.7, 0.9), (0.7, 0.6)]
    assert len(Study().knobs("muloco")) == len(Study().knobs("diloco")) == len(Study().outer)
    given = Study(methods=("muloco",), ratios=(16.0,), outer=("0.8/0.6", "0.7/0.9"))
    assert [(k.outer_lr, k.outer_momentum) for k in given.knobs("muloco")] == [(0.8, 0.6), (0.7, 0.9)]
    assert config_at("muloco", 16.0).outer_momentum == single_config({"method": "muloco"}).outer_momentum == 0.6
    assert config_at("muloco", 16.0, outer_momentum=0.9).outer_momentum == 0.9
    assert single_config({"method": "muloco", "outer_momentum": 0.9}).outer_momentum == 0.9


def test_what_a_method_fixes_is_not_searched() -> None:
    """A compressor that is part of it meets the ratio in whole chunks, and another one is refused."""
    study = Study(methods=("sparseloco", "qsparse"), ratios=(64.0,), compressors=("grbs", "top-k"), trials=4)
    assert {k.compressor for _, k in points(study, "sparseloco", 64.0)} == {"grbs"}
    run = study.trial("sparseloco", 64.0, study.candidates("sparseloco", 64.0)[0], [0], "screen").runs[0]
    assert str(own_arguments(run, 100_000)["reset_compressor"]).startswith("ChunkedTopK")
    assert run.columns()["compressor"] is None
    with pytest.raises(ValueError, match="compressor = top-k would be ignored by sparseloco"):
        single_config({"method": "sparseloco", "compressor": "top-k"})


@pytest.mark.parametrize("searcher", ["spread", "random"])
def test_structures_and_knobs_are_tried_together_none_twice(searcher: str) -> None:
    """With enough trials all pairs of them; the first few differ in both."""
    study = Study(
        methods=("partial-reset",), ratios=(16.0,), trials=40, searcher=searcher, residuals=(0.25, 1.0), delays=(0, 2)
    )
    found = points(study, "partial-reset", 16.0)
    tried = list(dict.fromkeys(found))
    structures, knobs = {s for s, _ in tried}, {k for _, k in tried}
    assert len(knobs) == 4
    assert len(tried) == len(structures) * 4
    if searcher == "spread":
        assert all(len({each[axis] for each in tried[:3]}) == 3 for axis in (0, 1))


def test_tpe_searches_knobs_too() -> None:
    """They are axes beside the interval and the share, and proposals are points of the product."""
    pytest.importorskip("optuna")
    knobs = tuple(Knobs(residual_in_model=share) for share in (0.0, 0.5, 1.0))
    wanted = Wanted("partial-reset", 64.0, count=9, steps=None, knobs=knobs)
    losses: list[float] = []
    while True:
        found = points_of(SEARCHERS["tpe"].propose(wanted, losses), wanted)
        if len(found) == len(losses):
            break
        losses += [abs(k.residual_in_model - 0.5) for _, k in found[len(losses) :]]
    assert len(set(found)) == len(found) == 9
    assert {k.residual_in_model for _, k in found} == {0.0, 0.5, 1.0}


def test_a_run_has_its_knobs_as_settings_and_its_optimizer_is_given_them() -> None:
    """By their names, in the row and in the constructor's arguments."""
    study = Study(
        methods=("partial-reset", "diloco"), ratios=(16.0,), residuals=(0.3,), outer=("0.8/0.6",), delays=(2,)
    )
    reset, outer = (study.trial(m, 16.0, study.candidates(m, 16.0)[0], [0], "screen").runs[0] for m in study.methods)
    given = own_arguments(reset)
    assert (given["residual_in_model"], given["reset_delay"]) == (0.3, 2)
    assert (own_arguments(outer)["outer_lr"], own_arguments(outer)["outer_momentum"]) == (0.8, 0.6)
    rows = [{name: run.columns()[name] for name in KNOBS} for run in (reset, outer)]
    assert [row.pop("ratio_schedule") for row in rows] == ["constant", "constant"]
    assert rows == [
        {"residual_in_model": 0.3, "outer_lr": None, "outer_momentum": None, "reset_delay": 2, "compressor": "grbs"},
        {"residual_in_model": None, "outer_lr": 0.8, "outer_momentum": 0.6, "reset_delay": None, "compressor": None},
    ]


def test_knobs_that_a_method_ignores_stand_at_their_defaults() -> None:
    """So equal configurations have equal settings, whatever a study's options are."""
    methods = ("sgd", "csea", "partial-reset", "diloco")
    study = Study(methods=methods, ratios=(16.0,), residuals=(0.9,), outer=("1/0",))
    for method, ratio in study.cells()[:2]:
        assert asdict(study.candidates(method, ratio)[0].knobs) == asdict(Knobs())


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"residuals": (0.5,)}, "residuals = 0.5 would be ignored by sgd, ef-sgd: .* as partial-reset"),
        ({"outer": ("1/0",)}, "outer = 1/0 would be ignored by sgd, ef-sgd"),
        ({"delays": (2, 4)}, "delays = 2,4 would be ignored by sgd, ef-sgd"),
        (
            {"compressors": ("top-k",), "methods": ("sgd", "mem-sgd")},
            "compressors = top-k would be ignored by sgd, mem-sgd",
        ),
        ({"ratio_schedules": ("qsr",), "methods": ("sgd",)}, "ratio_schedules = qsr would be ignored by sgd"),
    ],
    ids=str,
)
def test_a_list_that_no_method_reads_is_refused(given: dict[str, Any], words: str) -> None:
    """What was asked for would not be tried; where one method of several reads it, the others go without."""
    with pytest.raises(ValueError, match=words):
        Study(**{"methods": ("sgd", "ef-sgd"), "ratios": (16.0,)} | given)


@pytest.mark.parametrize("method", ["csea", "choco-sgd", "mem-sgd", "dgc"])
def test_a_ratio_at_which_nothing_is_sent_is_refused(method: str) -> None:
    """Less than a block, or a coordinate with its number, in a whole run of digits; the nearest one is named, and is met."""
    with pytest.raises(
        ValueError, match=rf"R_C = 10000000 cannot be met by {method} in 256 steps of 9098 .* nearest is"
    ) as said:
        Study(methods=("sgd", method), ratios=(1e7,), steps=256).cells()
    nearest = float(re.findall(r"nearest is ([0-9.]+)", str(said.value))[0])
    assert Study(methods=("sgd", method), ratios=(math.floor(nearest),), steps=256).cells()[1:] == [
        (method, math.floor(nearest))
    ]


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"outer": ("0.7",)}, "a rate above 0 and a momentum"),
        ({"outer": ("0.7/1",)}, "a rate above 0 and a momentum"),
        ({"outer": ("0/0.9",)}, "a rate above 0 and a momentum"),
        ({"outer": ("fast/0",)}, "a rate above 0 and a momentum"),
        ({"outer": ()}, "outer names no value"),
        ({"residuals": (0.5, 0.5)}, "residuals names 0.5 twice"),
        ({"residuals": (1.5,)}, "residuals must be at least 0 and at most 1"),
        ({"delays": (-1,)}, "delays must be a whole number"),
        ({"delays": (0, 2048)}, "delays names 2048: in runs of 2048 steps no such reset would arrive"),
        ({"delays": (0, 512), "rungs": (256,)}, "delays names 512: in runs of 256 steps"),
        ({"outer": ("0.7/0.9", ".70/.9")}, "outer names 0.7/0.9 twice"),
        ({"compressors": ("sign", "sign/4096")}, "compressors names sign/4096 twice"),
        ({"compressors": ("top-k", "top-k:fp32")}, "compressors names top-k twice"),
    ],
    ids=str,
)
def test_what_is_no_knob_is_refused(wrong: dict[str, tuple[object, ...]], words: str) -> None:
    """When the study is made, in a sentence."""
    with pytest.raises(ValueError, match=words):
        Study(methods=("diloco", "partial-reset"), ratios=(16.0,), **wrong)


@pytest.mark.parametrize(
    ("method", "knob", "words"),
    [
        ("csea", {"residual_in_model": 0.5}, "residual_in_model = 0.5 would be ignored by csea: leave it out"),
        ("sgd", {"outer_lr": 0.5}, "outer_lr = 0.5 would be ignored by sgd: leave it out"),
        ("diloco", {"reset_delay": 2}, "reset_delay = 2 would be ignored by diloco: leave it out"),
        (
            "choco-sgd",
            {"compressor": "shared-top"},
            "neighbours alone, and all workers agree on the blocks of shared-top",
        ),
    ],
)
def test_a_knob_that_a_run_would_ignore_is_refused(method: str, knob: dict[str, Any], words: str) -> None:
    """Also where the run was configured in Python, and not by options."""
    with pytest.raises(ValueError, match=words):
        own_arguments(config_at(method, 16.0, **knob) if has_ratio(method) else config_at(method, 1.0, **knob), 10_000)


@pytest.mark.parametrize(("a", "b"), [(1, 1), (3, 1), (1, 4), (2, 2), (3, 5), (6, 4)])
def test_crossing_gives_all_pairs_once(a: int, b: int) -> None:
    """And each number of either kind as often as the others, as early as it can."""
    pairs = list(crossed(a, b))
    assert sorted(pairs) == [(i, j) for i in range(a) for j in range(b)]
    assert len({i for i, _ in pairs[: min(a, b)]}) == len({j for _, j in pairs[: min(a, b)]}) == min(a, b)


def test_every_knob_is_read_by_some_method() -> None:
    """None is a setting of nothing."""
    assert {name for method in METHODS.builtin for name in read_by(method)} == set(KNOBS)
