"""Unequal treatment is found in the rows and said; equal treatment is not found fault with."""

import re
from typing import Any

import pytest

from cser_ray.store.read import RunRow
from tests.tuning.rows_factory import frame, grid, run
from tuning.compare.fairness import holm, paired_p, problems


def fair_study(**of_cser: Any) -> list[RunRow]:
    """Three methods with 6 runs each at R_C = 16, and the references; `of_cser` changes one of them."""
    structures = [
        [run("cser", lr=lr, reset_interval=h, gradient_ratio=32.0, trial_id=f"c{h}", **of_cser) for lr in (0.1, 0.4)]
        for h in (4, 8)
    ]
    repeated = [run("cser", lr=lr, reset_interval=8, gradient_ratio=32.0, repeat=1, **of_cser) for lr in (0.1, 0.4)]
    single = [
        [run(method, lr=lr) for lr in (0.1, 0.2, 0.4, 0.8)] + [run(method, lr=lr, repeat=1) for lr in (0.1, 0.4)]
        for method in ("local-sgd", "csea")
    ]
    references = [run(method, lr=lr, repeat=k) for method in ("sgd", "no-sync") for lr in (0.1, 0.4) for k in (0, 1)]
    return [*structures[0], *structures[1], *repeated, *single[0], *single[1], *references]


def test_equal_treatment_has_no_problems() -> None:
    """Structures for one method, further learning rates for another: as many runs each, and the references fewer."""
    assert problems(frame(fair_study())) == []


@pytest.mark.parametrize(
    ("column", "value", "said"),
    [
        ("batch_size", 32, "different batch size: 16 in csea, local-sgd, no-sync, sgd; 32 in cser"),
        ("schedule", "cosine", "different schedule: cosine in cser; step in"),
        ("warmup_steps", 100, "different warmup steps: 0 in"),
        ("momentum", 0.0, "different momentum: 0 in cser; 0.9 in"),
        ("weight_decay", 0.0, "different weight decay: "),
        ("workers", 4, "different workers: 4 in"),
        ("task_hash", "other", r"different data \(task_hash\): abc in .*; other in cser"),
        ("seed", 1, "different seed: 0 in"),
        ("steps", 4096, "steps differ by more than rounding to a multiple of H: 2048 in .*; 4096 in cser"),
    ],
)
def test_what_differs_is_named(column: str, value: Any, said: str) -> None:
    """One method with another value of a column is one problem, with both values and who has them."""
    (problem,) = problems(frame(fair_study(**{column: value})))
    assert re.match(said, problem)


def test_another_second_beta_is_named_among_those_that_read_it() -> None:
    """AdamW's methods are held to one value; those of SGD have none, which is no difference."""
    sgd, adamw = run("local-sgd"), run("csea-adamw", beta2=0.95)
    assert problems(frame([sgd, adamw])) == []
    assert problems(frame([sgd, adamw, run("local-adamw", beta2=0.99)])) == [
        "different beta2: 0.95 in csea-adamw; 0.99 in local-adamw"
    ]


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"realised_ratio": 16.4}, True),
        ({"realised_ratio": 16.3}, False),
        ({"realised_ratio": 15.6}, True),
        ({"realised_ratio": 1.0, "diverged": True}, False),
        ({"realised_ratio": 8.0, "dtype": "float64"}, False),
        ({"realised_ratio": 16.0, "dtype": "float64"}, True),
    ],
)
def test_bytes_off_the_ratio_asked_for_are_named(values: dict[str, Any], named: bool) -> None:
    """By the ledger, within 2 %; a run that diverged ends in mid-interval, and values of float64 are twice as long."""
    problem = "bytes sent are not those of the ratio asked for, by more than 2 %: csea at R_C 16 sent as at "
    found = problems(frame([run("local-sgd"), run("csea", **values)]))
    told = [text for text in found if text.startswith("bytes sent")]
    assert told == [f"{problem}{values['realised_ratio']:g}"] * named


def test_a_run_that_was_cut_short_is_named() -> None:
    """Finished means its last step, unless it diverged."""
    assert problems(frame(fair_study(steps_done=1024))) == [
        "6 finished runs took fewer steps than they were asked for: cser at R_C 16"
    ]
    assert problems(frame(fair_study(steps_done=1024, diverged=True))) == []


def test_more_passes_over_the_data_in_as_many_steps_are_named() -> None:
    """Two epochs where the others had one; the steps of a longer interval change nothing."""
    fair = [run("local-sgd", epochs=2048 / 75), run("cser-pl", steps=2064, reset_interval=24, epochs=2064 / 75)]
    assert problems(frame(fair)) == []
    assert problems(frame([*fair, run("csea", epochs=2 * 2048 / 75)])) == [
        "passes over the training data in 1000 steps differ: 13.33 in cser-pl, local-sgd; 26.67 in csea"
    ]


def test_more_candidates_in_as_many_runs_are_named() -> None:
    """Six rates once each are more chances than four, of which two were repeated: the search was wider."""
    others = [row for row in fair_study() if row.method != "csea"]
    wide = [run("csea", lr=lr, repeat=k) for lr, k in zip((0.1, 0.2, 0.4, 0.8, 1.6, 3.2), (0, 1) * 3, strict=True)]
    assert "the number of configurations tried differs: 4 in 2 of 3 cells, but 6 for csea at R_C 16" in problems(
        frame(others, wide)
    )


def test_steps_may_be_rounded_up_to_whole_intervals() -> None:
    """2 000 steps are 2 048 at H = 64 and 2 000 at H = 16; 2 064 at H = 16 can only have been asked for."""
    rounded = [run("local-sgd", steps=2048, reset_interval=64), run("cser-pl", steps=2000)]
    assert problems(frame(rounded)) == []
    (problem,) = problems(frame([*rounded, run("csea", steps=2064)]))
    assert problem.startswith("steps differ")


def test_fewer_runs_are_named() -> None:
    """A cell that lacks a learning rate of its peers has fewer runs and another grid."""
    runs = [row for row in fair_study() if (row.method, row.lr) != ("csea", 0.8)]
    found = problems(frame(runs))
    assert "the number of finished runs differs: 6 in 2 of 3 cells, but 5 for csea at R_C 16" in found
    assert any(text.startswith("learning rates differ") for text in found)


def test_the_references_are_held_equal_to_each_other() -> None:
    """They may have fewer runs than the methods, but no-sync not fewer than sgd."""
    runs = [row for row in fair_study() if (row.method, row.lr) != ("no-sync", 0.4)]
    assert "the number of finished runs differs: 4 in 1 of 2 cells, but 2 for no-sync" in problems(frame(runs))


def test_other_learning_rates_are_named_though_they_are_as_many() -> None:
    """A single-structure method whose grid leaves out the common rates was not treated equally."""
    runs = fair_study()
    shifted = [run(r.method, lr=r.lr / 16, repeat=r.repeat) if r.method == "csea" else r for r in runs]
    assert "csea at R_C 16 was not run at learning rate {0.1, 0.4}, which other methods were" in problems(
        frame(shifted)
    )


def test_other_repeats_are_named() -> None:
    """Seeds 0 and 2 are not 0 and 1: the comparison would not be paired."""
    runs = [row for row in fair_study() if row.method != "csea"]
    other = [run("csea", lr=r.lr, repeat=2 * r.repeat) for r in fair_study() if r.method == "csea"]
    assert "repeats differ: {0, 1} in 4 of 5 cells, but {0, 2} for csea at R_C 16" in problems(frame(runs, other))


def test_runs_without_a_result_are_counted_with_the_first_error() -> None:
    """A failed run and a stopped one are missing from their method's search."""
    broken = [
        run("csea", lr=0.4, run_id="x", status="ERROR", error="Traceback\n  ...\nMemoryError: too big"),
        run("csea", lr=0.8, run_id="y", status="STOPPED"),
    ]
    assert problems(frame(fair_study(), broken)) == [
        "2 of 28 runs did not finish (1 ERROR, 1 STOPPED): csea at R_C 16; the first error: MemoryError: too big"
    ]


def test_a_run_that_was_done_twice_is_named() -> None:
    """A second go at one repeat gives a method two chances."""
    again = run("csea", lr=0.1, run_id="again")
    assert any("more than once" in text and "csea at R_C 16" in text for text in problems(frame(fair_study(), again)))


def test_real_runs_are_judged_elsewhere() -> None:
    """A failed run on real workers does not make the virtual comparison unfair."""
    real = run("csea", rung="distributed", stage="real", run_id="real", status="ERROR", error="no GPU")
    assert problems(frame(fair_study(), real)) == []


def test_a_paired_p_by_hand() -> None:
    """Differences 1, 2, 3: t = 2 sqrt(3), and with 2 degrees of freedom p = 1/2 - t / (2 sqrt(2 + t^2)) = 0.03709."""
    other = {0: 60.0, 1: 65.0, 2: 50.0, 3: 1.0}
    assert paired_p({0: 61.0, 1: 67.0, 2: 53.0}, other) == pytest.approx(0.5 - 12**0.5 / (2 * 14**0.5))


def test_two_common_repeats_decide_nothing() -> None:
    """Under three pairs there is no p-value, whatever the difference."""
    assert paired_p({0: 99.0, 1: 99.0, 2: 99.0}, {0: 1.0, 1: 1.0}) is None


def test_equal_differences_are_judged_by_their_signs() -> None:
    """Three times one sample more is 1/8 by the sign test, not certainty; no difference is no evidence."""
    better = {k: 90.0 + k for k in range(3)}
    assert paired_p({k: a + 0.25 for k, a in better.items()}, better) == 0.125
    assert paired_p(better, better) == 1.0


def test_holm_by_hand() -> None:
    """Of three, the smallest counts three times, the next twice, and none falls below the one before."""
    assert holm({"a": 0.01, "b": 0.04, "c": 0.03}) == pytest.approx({"a": 0.03, "c": 0.06, "b": 0.06})
    assert holm({"a": 0.9, "b": 0.8}) == {"b": 1.0, "a": 1.0}


def test_the_factory_makes_a_fair_study() -> None:
    """What the tests of the comparison build on is without fault itself."""
    assert problems(frame(grid("csea", [60.0, 61.0]), grid("local-sgd", [60.0, 61.0]), grid("sgd", [70.0, 71.0]))) == []
