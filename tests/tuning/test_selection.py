"""Configurations are chosen by their validation loss over repeats, and by nothing that depends on the rows' order."""

import math

import pytest

from cser_ray.structure import Structure
from tests.tuning.rows_factory import frame, repeats, run
from tuning.selection import choose, mean_std, promote


def test_the_lowest_mean_over_repeats_is_chosen() -> None:
    """lr 0.2 has the lowest single loss (0.1), lr 0.1 the lowest mean (0.4 against 0.5)."""
    runs = frame(
        [run(lr=0.1, repeat=k, val_loss=loss) for k, loss in enumerate((0.3, 0.5))],
        [run(lr=0.2, repeat=k, val_loss=loss) for k, loss in enumerate((0.1, 0.9))],
    )
    choice = choose(runs)["local-sgd", 16.0]
    assert choice.configuration.lr == 0.1
    assert choice.score == pytest.approx(0.4)
    assert choice.repeats == (0, 1)


@pytest.mark.parametrize(("select", "lr"), [("val-loss", 0.1), ("val-acc", 0.2), ("train-loss", 0.4)])
def test_each_rule_chooses_by_its_own_column(select: str, lr: float) -> None:
    """Validation loss and training loss are best where low, validation accuracy where high."""
    runs = frame(
        run(lr=0.1, val_loss=0.1, val_acc=50.0, train_loss=0.9),
        run(lr=0.2, val_loss=0.2, val_acc=70.0, train_loss=0.8),
        run(lr=0.4, val_loss=0.3, val_acc=60.0, train_loss=0.7),
    )
    assert choose(runs, select)["local-sgd", 16.0].configuration.lr == lr


def test_only_the_best_repeated_configurations_are_eligible() -> None:
    """A single lucky screen run does not beat a configuration with three repeats."""
    runs = frame(run(lr=0.05, val_loss=0.01), repeats("local-sgd", [60.0, 61.0, 62.0]))
    assert choose(runs)["local-sgd", 16.0].configuration.lr == 0.1


def test_a_diverged_repeat_ranks_after_all_without() -> None:
    """The low loss of the other repeats does not make up for one that diverged, and two are worse than one."""
    lost = {"diverged": True, "val_loss": None}
    runs = [
        run(lr=0.4, repeat=0, val_loss=0.1), run(lr=0.4, repeat=1, **lost), run(lr=0.4, repeat=2, val_loss=0.1),
        run(lr=0.8, repeat=0, val_loss=0.05), run(lr=0.8, repeat=1, **lost), run(lr=0.8, repeat=2, **lost),
    ]  # fmt: skip
    choice = choose(frame(runs))["local-sgd", 16.0]
    assert (choice.configuration.lr, choice.diverged) == (0.4, 1)
    calm = [run(lr=0.1, repeat=k, val_loss=0.9) for k in range(3)]
    assert choose(frame(runs, calm))["local-sgd", 16.0].configuration.lr == 0.1


def test_a_loss_that_is_not_finite_does_not_win_by_being_left_out() -> None:
    """A repeat without a finite score makes its configuration the last, though nobody called it diverged."""
    runs = frame(
        [run(lr=0.2, repeat=k, val_loss=loss) for k, loss in enumerate((0.1, math.nan))],
        [run(lr=0.1, repeat=k, val_loss=0.9) for k in range(2)],
    )
    assert choose(runs)["local-sgd", 16.0].configuration.lr == 0.1


def test_ties_go_to_the_smaller_structure_and_learning_rate_in_any_order_of_rows() -> None:
    """Equal scores: H = 8 before 16, then lr 0.1 before 0.2, however the rows are shuffled."""
    runs = frame([run("cser-pl", lr=lr, reset_interval=h, run_id=f"{h}-{lr}") for h in (16, 8) for lr in (0.2, 0.1)])
    for seed in range(4):
        choice = choose(runs.sample(frac=1, random_state=seed))["cser-pl", 16.0]
        assert choice.configuration.structure == Structure(8, 1.0)
        assert choice.configuration.lr == 0.1


def test_unfinished_and_real_runs_are_no_repeats() -> None:
    """Neither a running run nor one on real workers counts, however good."""
    runs = frame(
        run(lr=0.1, val_loss=0.5),
        run(lr=0.2, val_loss=0.1, status="RUNNING"),
        run(lr=0.4, val_loss=0.1, rung="distributed", stage="real"),
    )
    assert choose(runs)["local-sgd", 16.0].configuration.lr == 0.1


def test_references_have_no_structure() -> None:
    """sgd and no-sync are chosen by learning rate alone, also where a failed row holds the defaults of the knobs."""
    runs = frame(run("sgd"), run("no-sync", reset_interval=1, reset_ratio=1.0, gradient_ratio=math.inf))
    assert {choice.configuration.structure for choice in choose(runs).values()} == {None}


def test_promotion_goes_by_the_score_of_the_choice() -> None:
    """The promoted candidate is the trial of the screen's best configuration, whatever was repeated since."""
    screen = [
        run("cser-pl", trial_id="c0", val_loss=0.5),
        run("cser-pl", trial_id="c1", reset_interval=8, val_loss=0.4),
    ]
    assert promote(frame(screen)).trial_id == "c1"
    assert promote(frame(screen)).configuration == choose(frame(screen))["cser-pl", 16.0].configuration
    repeated = [run("cser-pl", trial_id="c0-repeat", repeat=k, val_loss=0.1) for k in (1, 2)]
    assert promote(frame(screen, repeated)).trial_id == "c1"


def test_promotion_takes_one_cell() -> None:
    """Runs of two cells are refused by name."""
    with pytest.raises(ValueError, match="csea at 16, local-sgd at 16"):
        promote(frame(run("local-sgd"), run("csea")))


def test_an_unknown_rule_is_refused_with_those_there_are() -> None:
    """A select that would read the test split is no rule."""
    with pytest.raises(ValueError, match=r"'test-acc'.*val-loss, val-acc, train-loss"):
        choose(frame(run()), "test-acc")


def test_std_is_the_sample_one() -> None:
    """1, 2, 3 have mean 2 and sample standard deviation 1; one value has none."""
    assert mean_std([1.0, None, 2.0, 3.0]) == (2.0, 1.0)
    assert mean_std([5.0]) == (5.0, None)
    assert mean_std([None, math.nan]) == (None, None)
