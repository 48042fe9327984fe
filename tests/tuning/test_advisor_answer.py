"""The answer: no where nothing is gained, the simplest where several are alike, and what a study allows."""

import math
from dataclasses import replace
from itertools import groupby

import pytest

from cser_ray.budget import structure_for
from tuning.advise.advice import Recommendation, recommend, span
from tuning.advise.constants import Constants
from tuning.advise.learned import Learned, MethodOutcome
from tuning.advise.lines import PLANNED, Line, leaving, lines_of
from tuning.advise.peers import GAIN
from tuning.advise.step_time import Form, Job, suffixed

JOB = Job(params=25_000_000, step_s=0.1, workers=4, rate=1e9)
RATIOS = (8.0, 64.0, 512.0)
C = Constants(
    efficiency=0.956, hop_s=4e-5, host_hop_s=0.0, host_s_per_byte=2e-12, hidden=0.63, early_s=0.0,
    pass_s_per_byte=1e-12, ddp_s_per_byte=0.0, cast_s_per_byte=5e-12, power_s_per_byte=5e-11, power_s=0.02,
    source="this test, so that a new measurement does not move its answers",
)  # fmt: skip


def answer(job: Job, study: Learned | None = None, max_loss: float = 1.0) -> tuple[Recommendation, list[Line]]:
    """What is recommended, and the lines that it is recommended of."""
    lines, skipped = lines_of(job, C, PLANNED, RATIOS, study)
    assert not skipped
    return recommend(job, lines, study, max_loss), lines


def line_of(lines: list[Line], name: str, ratio: float | None = None) -> Line:
    """The one line of a form, named as in `bench links`: csea, csea+overlap, csea+delay1."""
    (found,) = (line for line in lines if (suffixed(line.form), line.ratio) == (name, ratio))
    return found


def recommended(said: Recommendation, lines: list[Line]) -> Line:
    """The line that the answer names."""
    form = Form(said.method or "", reset_delay=said.reset_delay, overlap=said.overlap)
    return line_of(lines, suffixed(form), said.ratio)


def test_a_fast_link_means_not_to_compress() -> None:
    """400 Gb/s: nothing gains 5 % over plain DDP, and the answer says so first."""
    said, lines = answer(replace(JOB, rate=4e11))
    assert said.kind == "do-not-compress"
    assert said.text.startswith("Do not compress: DDP takes 10")
    assert line_of(lines, "ddp").time / min(line.time for line in lines) - 1 < GAIN


def test_a_link_on_which_bf16_is_enough() -> None:
    """There is 5 % to gain over plain DDP, and nobody gains them over its bf16 hook."""
    said, lines = answer(replace(JOB, rate=10**10.85, step_s=0.05))
    assert said.kind == "bf16"
    assert said.text.startswith("bf16 is enough: DDP with the bf16 hook takes 5")
    fastest = min(line.time for line in lines if line.ratio)
    assert line_of(lines, "ddp").time / fastest - 1 >= GAIN > line_of(lines, "ddp-bf16").time / fastest - 1


def test_a_slow_link_means_to_compress_no_more_than_needed() -> None:
    """The smallest of the ratios asked for that leaves the link without a delay; where local SGD does, is said."""
    said, lines = answer(replace(JOB, rate=3e9))
    free = [line for line in lines if line.ratio and line.leaves_link and not line.form.reset_delay]
    assert said.kind == "compress"
    assert said.ratio == min(line.ratio or 0 for line in free) == 64
    assert said.text.startswith("Compress: csea+overlap at R_C = 64 takes 10")
    assert "; local-sgd at R_C = 512 is as fast. What it costs in accuracy only a study says" in said.text
    assert line_of(lines, "local-sgd", 512.0).leaves_link


def test_local_sgd_is_preferred_where_it_is_as_fast() -> None:
    """At the one ratio asked for, all methods leave the link: the simplest of them is the answer."""
    lines, _ = lines_of(JOB, C, PLANNED, (8192.0,), None)
    assert all(line.leaves_link for line in lines if line.ratio and line.form.method != "ef-sgd")
    said = recommend(JOB, lines, None)
    assert (said.kind, said.method) == ("local-sgd", "local-sgd")
    assert said.text.startswith("Plain local SGD is as good as anything here: local-sgd at R_C = 8192 takes")


def test_the_slower_the_link_the_more_is_done_about_it() -> None:
    """From 1 Mb/s to 10 Tb/s the answers come in one order, each once, and a gain under 5 % is never sold."""
    kinds = []
    for k in range(120, 262):
        said, lines = answer(replace(JOB, rate=10 ** (k / 20), step_s=0.05))
        kinds.append("compress" if said.kind == "local-sgd" else said.kind)
        dense = min(line_of(lines, name).time for name in ("ddp", "ddp-bf16"))
        gain = dense / recommended(said, lines).time - 1
        assert gain >= GAIN if kinds[-1] == "compress" else said.method in ("ddp", "ddp-bf16")
    assert [kind for kind, _ in groupby(kinds)] == ["compress", "bf16", "do-not-compress"]


def test_one_worker_has_nothing_to_send() -> None:
    """And needs no lines to be told so."""
    said = recommend(replace(JOB, workers=1), (), None)
    assert (said.kind, said.method) == ("nothing-to-send", None)


def test_overlap_and_delay_are_offered_where_they_help() -> None:
    """At 10 Gb/s and R_C = 8 csea waits, overlapped it does not; at 3 Gb/s it needs a delay; at R_C = 512 neither."""

    def names(rate: float, ratio: float) -> list[str]:
        _, lines = answer(replace(JOB, rate=rate))
        return [suffixed(line.form) for line in lines if (line.form.method, line.ratio) == ("csea", ratio)]

    assert names(1e10, 8.0) == ["csea", "csea+overlap"]
    assert names(3e9, 8.0) == ["csea", "csea+overlap", "csea+delay1"]
    assert names(1e10, 512.0) == ["csea"]


def test_the_smallest_ratio_that_leaves_the_link() -> None:
    """At it communication is under 2 % of the step, at half of it it is not; hiding never needs a larger one."""
    job = replace(JOB, rate=1e10)
    found = leaving(job, C, (*PLANNED, "sgd"))
    assert found.keys() == set(PLANNED)
    for method, ways in found.items():
        exact = ways["exact"]
        assert exact
        lines, _ = lines_of(job, C, (method,), (exact / 2, exact), None)
        assert line_of(lines, method, exact).leaves_link
        assert not line_of(lines, method, exact / 2).leaves_link
        assert all(ratio and ratio <= exact for ratio in ways.values())
    assert found["csea"].keys() == {"exact", "overlap", "delay"}
    assert found["diloco"].keys() == {"exact"}


# ------------------------------------------------------------------------------------------------------- with a study


FAST = replace(JOB, rate=1e10)
"""All methods are about as fast on it at R_C = 64, and faster than DDP and its bf16 hook."""


def study(target: float | None = None, **outcomes: tuple[float | None, float | None]) -> Learned:
    """A study in which methods, at R_C = 64, lose so many points and need so many steps to the target; sgd needs 1000."""
    known = {("sgd", 1.0): MethodOutcome(None, 0.0, 0, 1000.0)}
    for name, (cost, steps) in outcomes.items():
        method = name.replace("_", "-")
        known[method, 64.0] = MethodOutcome(structure_for(method, 64), cost, 0, steps)
    return Learned("t", "m", 25_000_000, 4, 2048, 3, True, target, "sgd", known)


def test_what_loses_too_much_is_not_recommended() -> None:
    """local-sgd would be the simplest, but it loses 3 points; with 4 accepted it is taken."""
    found = study(local_sgd=(3.0, None), cser_pl=(0.4, None), csea=(0.6, None))
    said, _ = answer(FAST, found)
    assert (said.kind, said.method, said.ratio) == ("compress", "csea", 64.0)
    assert "loses 0.6 points of accuracy in the study (1 accepted)" in said.text
    said, _ = answer(FAST, found, max_loss=4.0)
    assert said.kind == "local-sgd"


def test_where_everything_loses_too_much_dense_stays() -> None:
    """However slow the link is; the nearest method is named."""
    said, _ = answer(JOB, study(local_sgd=(3.0, None), csea=(2.5, None)))
    assert said.kind == "bf16"
    assert "no method of the study stays within 1 points of sgd (the nearest, csea at R_C = 64, loses 2.5)" in said.text


def test_a_delay_that_the_study_chose_is_the_one_that_is_timed() -> None:
    """Its accuracy is known with that delay, and only with it; nothing further is proposed beside it."""
    found = study(csea=(0.1, None))
    outcome = replace(found.outcomes["csea", 64.0], reset_delay=4)
    lines, _ = lines_of(JOB, C, ("csea",), (64.0,), replace(found, outcomes={("csea", 64.0): outcome}))
    ours = [line for line in lines if line.form.method == "csea"]
    assert [(line.form.reset_delay, line.form.overlap, line.cost) for line in ours] == [(4, False, 0.1)]


def test_a_method_that_diverged_is_not_recommended() -> None:
    """Even if the repeats that did not diverge lost nothing."""
    found = study(local_sgd=(0.0, None))
    outcome = replace(found.outcomes["local-sgd", 64.0], diverged=1)
    said, _ = answer(JOB, replace(found, outcomes=found.outcomes | {("local-sgd", 64.0): outcome}))
    assert said.kind == "bf16"
    assert "none was compared with synchronous training" in said.text


def test_time_to_target_counts_where_it_is_known() -> None:
    """csea's step is no shorter than local-sgd's, but it needs a third of the steps."""
    said, lines = answer(FAST, study(2.0, local_sgd=(0.0, 3000.0), csea=(0.0, 1000.0)))
    assert said.method == "csea"
    csea = line_of(lines, "csea", 64.0)
    assert csea.seconds_to_target == pytest.approx(1000 * csea.prediction.step_s)
    assert f"reaches the target in {span(csea.time)}, DDP in {span(line_of(lines, 'ddp').time)}" in said.text


def test_a_short_step_that_needs_too_many_of_them_is_no_gain() -> None:
    """Forty times the steps at a tenth of the time: the answer stays dense."""
    said, _ = answer(JOB, study(2.0, local_sgd=(0.0, 40_000.0)))
    assert said.kind == "bf16"


def test_never_reaching_the_target_is_never() -> None:
    """Infinite seconds, so it is not recommended."""
    said, lines = answer(JOB, study(2.0, local_sgd=(0.0, None)))
    assert line_of(lines, "local-sgd", 64.0).seconds_to_target == math.inf
    assert said.kind == "bf16"


@pytest.mark.parametrize(
    ("seconds", "text"), [(3.14159, "3.14 s"), (119, "119 s"), (150, "2.5 min"), (7300, "2.03 h"), (math.inf, "never")]
)
def test_spans(seconds: float, text: str) -> None:
    """As long as a prediction deserves."""
    assert span(seconds) == text
