"""RunConfig: what a run is called, how long it is, and which learning rate it has when."""

import itertools
import math
from dataclasses import asdict, fields, replace

import pytest

from cser_ray.budget import Structure
from cser_ray.config import SCHEDULES, RunConfig
from cser_ray.store.read import RunRow, columns


def test_it_is_a_value() -> None:
    """Equal settings are equal runs, in whatever order they are made."""
    assert RunConfig(lr=0.5, repeat=1) == replace(RunConfig(repeat=1), lr=0.5)
    assert RunConfig(**asdict(RunConfig(method="csea"))) == RunConfig(method="csea")


def test_its_fields_are_columns() -> None:
    """One vocabulary: every field is a column of the runs table but for a path of one machine."""
    named = {f.name for f in fields(RunConfig)} - {c.name for c in columns(RunRow)}
    assert named == {"data_dir"}


@pytest.mark.parametrize(
    ("steps", "interval", "taken"), [(2048, 1, 2048), (2048, 16, 2048), (2048, 3, 2049), (10, 16, 16), (1, 1, 1)]
)
def test_steps_are_raised_to_whole_intervals(steps: int, interval: int, taken: int) -> None:
    """A run ends with a reset."""
    assert RunConfig(steps=steps, reset_interval=interval).run_steps == taken


def test_repeats_have_seeds_of_their_own() -> None:
    """No two (seed, repeat) of ordinary size share a run seed; the method has no part in it."""
    seeds = [RunConfig(seed=s, repeat=k).run_seed for s, k in itertools.product(range(50), range(20))]
    assert len(set(seeds)) == len(seeds)
    assert RunConfig(method="sgd", repeat=3).run_seed == RunConfig(method="cser", lr=0.5, repeat=3).run_seed


def test_run_ids_tell_runs_of_a_trial_apart() -> None:
    """By learning rate and repeat."""
    runs = [RunConfig(lr=lr, repeat=k) for lr, k in itertools.product((0.05, 0.1, 1.0), range(3))]
    assert len({run.run_id("t") for run in runs}) == 9
    assert RunConfig(lr=0.05, repeat=2).run_id("cser-16-c0-screen") == "cser-16-c0-screen-lr0.05-r2"


def test_the_structure_is_the_three_knobs() -> None:
    """(H, RC1, RC2) as the budget speaks of them."""
    assert RunConfig(reset_interval=4, reset_ratio=8, gradient_ratio=64).structure == Structure(4, 8, 64)


def test_step_schedule() -> None:
    """Times 0.2 at 30, 60 and 80 % of the run: the paper's."""
    rates = [RunConfig(steps=10).rate(t) for t in range(1, 11)]
    assert rates == pytest.approx([1, 1, 1, 0.2, 0.2, 0.2, 0.04, 0.04, 0.008, 0.008])


def test_cosine_schedule() -> None:
    """From 1, by half a cosine, to nearly 0."""
    config = RunConfig(steps=100, schedule="cosine")
    assert [config.rate(t) for t in (1, 51)] == pytest.approx([1, 0.5])
    assert 0 < config.rate(100) < 0.001


def test_constant_schedule() -> None:
    """1 throughout."""
    assert {RunConfig(steps=9, schedule="constant").rate(t) for t in range(1, 10)} == {1.0}


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_warmup_is_linear_and_the_same_for_every_schedule(schedule: str) -> None:
    """Over 4 steps a quarter, half, three quarters and all of what the schedule says; nothing after."""
    cold, warm = (RunConfig(steps=40, schedule=schedule, warmup_steps=w) for w in (0, 4))
    factors = [warm.rate(t) / cold.rate(t) for t in range(1, 7)]
    assert factors == pytest.approx([0.25, 0.5, 0.75, 1, 1, 1])


def test_the_schedule_spans_the_steps_really_taken() -> None:
    """Where H lengthens a run its schedule is stretched with it."""
    assert RunConfig(steps=10, reset_interval=20).rate(6) == 1.0


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"schedule": "linear"}, "there is no schedule 'linear'. Known: step, cosine, constant"),
        ({"steps": 0}, "steps must be a whole number of at least 1, not 0"),
        ({"steps": 1.5}, "steps must be a whole number of at least 1, not 1.5"),
        ({"steps": math.inf}, "steps must be a whole number of at least 1, not inf"),
        ({"steps": math.nan}, "steps must be a whole number of at least 1, not nan"),
        ({"batch_size": 0}, "batch_size must be"),
        ({"workers": 0}, "workers must be"),
        ({"evaluations": 0}, "evaluations must be"),
        ({"reset_interval": 0}, "reset_interval must be"),
        ({"lr": 0.0}, "lr must be above 0 and finite, not 0.0"),
        ({"lr": math.nan}, "lr must be above 0 and finite, not nan"),
        ({"momentum": 1.0}, "momentum must be at least 0 and below 1, not 1.0"),
        ({"weight_decay": -1.0}, "weight_decay must be at least 0 and finite, not -1.0"),
        ({"rung": "cloud"}, "there is no rung 'cloud'. Known: virtual, distributed"),
        ({"repeat": -1}, "repeat must be a whole number of at least 0, not -1"),
        ({"warmup_steps": 11, "steps": 10}, "warmup_steps = 11: a warm-up is at most as long as the 10 steps"),
        ({"warmup_steps": -1}, "warmup_steps must be a whole number of at least 0, not -1"),
    ],
)
def test_what_cannot_be_is_refused(wrong: dict[str, object], message: str) -> None:
    """With the value and the rule."""
    with pytest.raises(ValueError, match=message):
        RunConfig(**wrong)  # type: ignore[arg-type]
