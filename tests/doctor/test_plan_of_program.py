"""The plan for a program that doctor has watched starts from what was measured of it."""

from dataclasses import replace

import pytest

from cser_ray.commands.doctor import plan_of
from cser_ray.doctor.findings import find
from cser_ray.doctor.record import RankRecord
from tests.doctor.records import NVLINK_STEPS_S, nvlink, slow
from tuning.advise.lines import Line
from tuning.advise.peers import GAIN
from tuning.advise.plan import Plan
from tuning.advise.step_time import predict
from tuning.advise.text import render_plan

RECORDED = {
    **{f"nvlink-{kind}": nvlink(kind) for kind in NVLINK_STEPS_S},
    **{f"slow-{kind}": slow(kind) for kind in ("ddp", "plain")},
}


def planned(records: list[RankRecord]) -> Plan:
    """The plan that doctor makes of these records."""
    plan = plan_of(find(records))
    assert plan is not None
    return plan


def line_of(plan: Plan, method: str) -> Line:
    """The one line of a peer."""
    (found,) = (line for line in plan.lines if line.form.method == method and line.ratio is None)
    return found


@pytest.mark.parametrize("name", RECORDED)
def test_the_present_forms_row_is_what_was_measured(name: str) -> None:
    """One row is marked as measured: its step is doctor's, and computing is that less what it exposes."""
    found, plan = find(RECORDED[name]), planned(RECORDED[name])
    (now,) = (line for line in plan.lines if line.measured)
    assert now.form.method == found.manner
    assert now.prediction.step_s == found.step_s
    assert now.prediction.exposed_s == pytest.approx(found.exposed_s or 0.0)
    assert plan.job.step_s == pytest.approx(found.step_s - (found.exposed_s or 0.0))
    assert f"{now.form.method}, measured" in render_plan(plan)[0]


@pytest.mark.parametrize("kind", NVLINK_STEPS_S)
def test_nothing_is_compressed_over_nvlink(kind: str) -> None:
    """The first words say so, and what the most is that could be gained."""
    said = planned(nvlink(kind)).recommendation
    assert said.kind == "do-not-compress"
    most = {"ddp": "1.2%", "plain": "4.2%", "fsdp2": "9.2%"}[kind]
    assert said.text.startswith(f"Do not compress: at most {most} of a step is to gain. ")
    assert f"takes {1e3 * NVLINK_STEPS_S[kind]:.3g} ms a step as measured" in said.text


def test_ddp_over_nvlink_is_predicted_from_a_plain_loop() -> None:
    """25.8 ms were measured; with the constants of links of 1 and 10 Gb/s, unbounded, it would be 36 ms."""
    line = line_of(planned(nvlink("plain")), "ddp")
    assert not line.measured
    assert line.prediction.step_s == pytest.approx(NVLINK_STEPS_S["ddp"], rel=0.05)


@pytest.mark.parametrize("kind", ["ddp", "plain"])
def test_a_slow_link_is_worth_less_sending(kind: str) -> None:
    """At 100 Mb/s a third of the step waits: the answer gains most of that, by the measured step's account."""
    found, plan = find(slow(kind)), planned(slow(kind))
    assert plan.recommendation.kind in ("compress", "local-sgd")
    said = plan.recommendation
    (chosen,) = (
        line
        for line in plan.lines
        if (line.form.method, line.ratio) == (said.method, said.ratio)
        and (line.form.overlap, line.form.reset_delay) == (said.overlap, said.reset_delay)
    )
    assert found.step_s - (found.exposed_s or 0.0) <= chosen.prediction.step_s < 0.75 * found.step_s
    assert f"takes {1e3 * found.step_s:.3g} ms" in said.text


def test_ddp_on_a_slow_link_is_predicted_from_a_plain_loop() -> None:
    """The plain loop's plan knows DDP's step, which was measured in another run, within 15 %."""
    line = line_of(planned(slow("plain")), "ddp")
    assert line.prediction.step_s == pytest.approx(find(slow("ddp")).step_s, rel=0.15)


def test_the_anchored_model_says_of_ddp_what_was_measured() -> None:
    """Fitted so, the model's own prediction of the present form is its step, and bf16 lies between that and computing."""
    found, plan = find(slow("ddp")), planned(slow("ddp"))
    assert plan.present is not None
    assert plan.present.form is not None
    assert plan.constants is not None
    assert predict(plan.present.form, plan.job, plan.constants).step_s == pytest.approx(found.step_s, rel=1e-9)
    assert plan.job.step_s < line_of(plan, "ddp-bf16").prediction.step_s < found.step_s


@pytest.mark.parametrize("kind", ["ddp", "plain"])
@pytest.mark.parametrize("share", [0.0, 0.01, 0.03, 0.049])
def test_what_does_not_wait_is_not_compressed(kind: str, share: float) -> None:
    """On whatever link: a step that waits for under 5 % of itself has nothing to gain, and no prediction overrides that."""
    records = [replace(record, wait_s=share * record.step_s) for record in slow(kind)]
    found = find(records)
    assert found.exposed_s is not None
    assert found.exposed_s < GAIN * found.step_s
    said = planned(records).recommendation
    assert said.kind == "do-not-compress"
    assert f"at most {found.exposed_s / found.step_s:.1%} of a step" in said.text


@pytest.mark.parametrize("kind", ["ddp", "plain"])
def test_waiting_that_bytes_do_not_explain_is_not_gained_by_sending_less(kind: str) -> None:
    """Over NVLink 10 ms of waiting are not the bytes' doing: who synchronises at every step still waits most."""
    plan = planned(nvlink(kind, wait_s=0.010))
    every_step = [line for line in plan.lines if line.ratio and line.prediction.rounds >= 1]
    assert every_step
    for line in every_step:
        assert line.prediction.exposed_s > 0.005
    assert plan.job.skew_s > 0.005
    assert any("however little it sends" in text for text in plan.origins.assumed)


def test_a_step_that_only_waits_has_a_plan() -> None:
    """Where what waits is measured as the whole step, a hundredth of it still computes, and the report is not lost."""
    records = [replace(record, wait_s=record.step_s) for record in slow("plain")]
    assert planned(records).recommendation.kind in ("compress", "local-sgd")


def test_without_a_measured_wait_nothing_is_promised() -> None:
    """DDP that noted no step: its row is still the measured one, and the answer says what is not known."""
    plan = planned(nvlink("ddp", wait_s=None))
    assert plan.recommendation.kind == "do-not-compress"
    assert "not told apart" in plan.recommendation.text
    assert line_of(plan, "ddp").prediction.step_s == NVLINK_STEPS_S["ddp"]


@pytest.mark.parametrize(
    ("parallel", "manner"),
    [
        ((), "your own loop"),
        (("DDP of 9 parameters, 1 bucket",), "ddp"),
        (("DDP of 9 parameters, 1 bucket, comm hook bf16_compress_hook, static_graph",), "ddp-bf16"),
        (("DDP of 9 parameters, 1 bucket, comm hook BuiltinCommHookType.FP16_COMPRESS",), "ddp-fp16"),
        (("DDP of 9 parameters, 1 bucket, comm hook mine",), "DDP with mine"),
        (("FSDP2 (fully_shard), placements (Shard(dim=0),)",), "FSDP2"),
    ],
)
def test_how_it_averages_is_named_as_plan_does(parallel: tuple[str, ...], manner: str) -> None:
    """DDP and its 16-bit hooks have rows in every plan; anything else is named by what it is."""
    assert find(nvlink("ddp", parallel=parallel)).manner == manner
