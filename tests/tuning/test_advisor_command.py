"""`cser-ray plan` as users run it: the answer first, each number's origin, and what it refuses."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tuning.command_line import cli, error_of
from tests.tuning.link_table import table
from tests.tuning.test_advisor_study import written

JOB = ("plan", "--params", "25557032", "--step-ms", "17.8", "--workers", "2", "--rate", "10gbit")


def output_of(*arguments: str) -> str:
    """What a command that must succeed prints."""
    result = cli(*arguments)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_the_answer_comes_first_and_every_number_says_where_it_is_from() -> None:
    """A sentence, the job, the tables, and what was given and assumed; nothing was measured here."""
    lines = output_of(*JOB).splitlines()
    assert lines[0].startswith("Plain local SGD is as good as anything here: local-sgd at R_C = 256 takes 18")
    assert "25,557,032 parameters, 17.8 ms a step without communication, 2 workers, 10000 Mb/s" in lines
    assert [line for line in lines if line in ("Given", "Measured", "Assumed")] == ["Given", "Assumed"]
    assert any("latency" in line for line in lines[lines.index("Assumed") :])


def test_all_formats_hold_the_same_rows() -> None:
    """JSON holds the answer as well; beside CSV it goes to standard error, so that a file holds rows alone."""
    as_json = json.loads(output_of(*JOB, "--format", "json"))
    result = cli(*JOB, "--format", "csv")
    rows = list(csv.DictReader(result.stdout.splitlines()))
    assert [(row["method"], float(row["step_ms"])) for row in rows] == [
        (line["method"], pytest.approx(line["step_ms"], rel=1e-5)) for line in as_json["lines"]
    ]
    assert [row["method"] for row in rows[:3]] == ["ddp", "ddp-bf16", "powersgd-1"]
    assert as_json["recommendation"]["kind"] == "local-sgd"
    assert as_json["constants"]["efficiency"] > 0.9
    assert result.stderr.startswith("Plain local SGD is as good")
    assert "Assumed" in result.stderr


def test_a_fast_link_is_told_not_to_compress() -> None:
    """The first words of the answer."""
    fast = [*JOB[:-1], "400gbit", "--step-ms", "170"]
    assert output_of(*fast).startswith("Do not compress: DDP takes 17")


def test_one_worker_is_told_that_there_is_nothing_to_send() -> None:
    """And gets no table of nothing."""
    said = output_of(*JOB, "--workers", "1")
    assert said.startswith("With one worker there is nothing to communicate")
    assert "powersgd-1" not in said


def test_methods_and_ratios_asked_for() -> None:
    """Only those, beside the peers; what no structure meets is left out with its reason."""
    said = json.loads(output_of(*JOB, "--methods", "csea,local-sgd", "--ratios", "7.5,16", "--format", "json"))
    exact = [line for line in said["lines"][3:] if not line["reset_delay"] and not line["overlap"]]
    assert [(line["method"], line["ratio"]) for line in exact] == [
        ("csea", 7.5), ("local-sgd", 16), ("csea", 16),
    ]  # fmt: skip
    (reason,) = said["skipped"]
    assert reason.startswith("local-sgd: R_C = 7.5 cannot be met")


def test_a_rate_in_bits_a_second_is_the_same_rate() -> None:
    """10gbit, as tc writes it, and 1e10."""
    assert output_of(*JOB[:-1], "1e10") == output_of(*JOB)


def test_the_step_of_a_task_is_timed_here() -> None:
    """Its parameters are counted, its step measured, and both said so."""
    said = json.loads(output_of("plan", "--task", "digits", "--workers", "4", "--rate", "100mbit", "--format", "json"))
    assert said["job"]["params"] == 9098
    assert 1e-5 < said["job"]["step_s"] < 1
    assert [text for text in said["measured"] if "ms a step of digits, one worker alone on this machine's cpu" in text]
    assert "9,098 parameters, counted of digits" in said["measured"]


def test_a_model_of_the_users_own_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its shapes say what PowerSGD sends: of 100 x 200 and a vector of 100, 300 + 100 values."""
    (tmp_path / "ownmodel.py").write_text("import torch\n\ndef net():\n    return torch.nn.Linear(200, 100)\n")
    monkeypatch.syspath_prepend(tmp_path)
    job = ("--step-ms", "5", "--workers", "2", "--rate", "1gbit", "--format", "json")
    said = json.loads(output_of("plan", "--model", "ownmodel:net", *job))
    assert said["job"]["params"] == 20_100
    (power,) = (line for line in said["lines"] if line["method"] == "powersgd-1")
    assert power["ledger_bytes"] == pytest.approx(4 * 400)
    assert "cannot be made (module 'ownmodel' has no attribute 'nut')" in error_of(
        "plan", "--model", "ownmodel:nut", *job
    )


def test_a_study_adds_what_accuracy_costs(tmp_path: Path) -> None:
    """Its ratios are planned, its structures kept; points and seconds stand beside, and decide."""
    uri = written(tmp_path / "study")
    said = json.loads(output_of(*JOB, "--study", uri, "--format", "json"))
    lines = {line["method"]: line for line in said["lines"] if not (line["reset_delay"] or line["overlap"])}
    assert {line["ratio"] for line in said["lines"][3:]} == {16}
    assert lines["local-sgd"]["accuracy_cost"] == pytest.approx(2.0)
    assert lines["csea"]["seconds_to_target"] == pytest.approx(290 * lines["csea"]["step_ms"] / 1e3)
    assert lines["local-sgd"]["seconds_to_target"] == "inf"
    assert lines["ddp"]["seconds_to_target"] == pytest.approx(295 * lines["ddp"]["step_ms"] / 1e3)
    assert lines["powersgd-1"]["accuracy_cost"] is None
    step_s = lines["csea"]["step_ms"] / 1e3
    assert lines["csea"]["curve"] == [
        [pytest.approx(step * step_s), pytest.approx(loss)] for step, loss in ((100, 2.0), (200, 0.75), (300, 0.5))
    ]
    assert said["recommendation"]["method"] == "csea"
    assert "what 8 workers lost in accuracy, 2 lose too" in said["assumed"]
    strict = json.loads(output_of(*JOB, "--study", uri, "--max-loss", "-2", "--format", "json"))
    assert strict["recommendation"]["kind"] == "bf16"
    assert "points lost" in output_of(*JOB, "--study", uri)


def test_links_of_the_users_own_make_the_constants(tmp_path: Path) -> None:
    """They are fitted, and the error on steps that no fit has seen is said."""
    path = tmp_path / "links.csv"
    with path.open("w", newline="") as file:
        rows = table(noise=0.03)
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    said = json.loads(output_of(*JOB, "--backend", "gloo", "--links", str(path), "--format", "json"))
    assert said["constants"]["hop_s"] == pytest.approx(2e-4, rel=0.2)
    (text,) = (text for text in said["measured"] if "model's constants" in text)
    assert f"on 108 steps of {path}; on steps that a fit has not seen it is off by" in text
    assert "no measured step over nccl" in error_of(*JOB, "--links", str(path))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--workers", "2", "--rate", "1gbit"), "Give --params N, or a model to count them of"),
        (("--params", "5", "--task", "digits"), "Give --params N, or a model to count them of"),
        (("--params", "5", "--workers", "2", "--rate", "1gbit"), "Give --step-ms"),
        (("--params", "5", "--step-ms", "1"), "Give --workers and --rate"),
        ((*JOB[1:], "--measure"), "--measure gives rate and latency: leave --rate and --latency-ms out"),
        ((*JOB[1:-2], "--measure", "--workers", "1"), "--measure with 1 workers: give --workers, 2 or more"),
        ((*JOB[1:-2], "--measure", "--processes-per-worker", "8"), "--measure takes one process a worker"),
        ((*JOB[1:-1], "10gbps"), "'10gbps' is not the rate of a link: write it as tc does"),
        ((*JOB[1:-1], "0"), "The link's rate is 0"),
        ((*JOB[1:], "--workers", "0"), "0 workers: a job has 1 or more"),
        ((*JOB[1:], "--max-loss", "1"), "--target-loss and --max-loss speak of a study: give it by --study"),
        ((*JOB[1:], "--study", "nowhere"), "no results at"),
        ((*JOB[1:], "--links", "nowhere.csv"), "No such file or directory: 'nowhere.csv'"),
        ((*JOB[1:], "--methods", "cseaa"), "did you mean 'csea'"),
    ],
)  # fmt: skip
def test_plan_refuses(arguments: tuple[str, ...], message: str) -> None:
    """In a sentence that says what to give."""
    assert message in error_of("plan", *arguments)


def test_under_torchrun_the_link_is_measured_and_one_rank_speaks() -> None:
    """Two gloo ranks time two all-reduces; the plan is printed once and says what was measured."""
    start = [sys.executable, "-m", "torch.distributed.run", "--no-python", "--nproc-per-node", "2"]
    plan = [sys.executable, "-c", "from cser_ray.commands.cli import main; main()", "plan", "--params", "2000000"]
    command = [*start, *plan, "--step-ms", "20", "--measure", "--format", "json"]
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, env=environment)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["job"]["workers"] == 2
    assert 1e8 < said["job"]["rate"] < 1e12
    assert 1e-5 < said["job"]["latency_s"] < 1
    assert "by all-reduces of two sizes over gloo between 2 workers" in said["measured"][0]
    assert not [text for text in said["assumed"] if "latency" in text or "payload" in text]


@pytest.mark.parametrize("method", ["signum", "sgd", "no-sync", "d-psgd"])
def test_methods_without_a_ratio_cannot_be_planned_with_alone(method: str) -> None:
    """A sentence that says why and what can; beside others they are left out, and named."""
    said = error_of(*JOB, "--methods", method, "--ratios", "16")
    assert said.startswith(f"no method is left to plan with: R_C = 16 cannot be met by {method}: it ")
    assert "cannot be met by" in output_of(*JOB, "--methods", f"{method},csea", "--ratios", "16")
