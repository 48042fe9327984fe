"""Configurations are chosen by their validation loss over repeats, and by nothing that depends on the rows' order."""

import math
from dataclasses import replace

import pytest

from cser_ray.structure import Structure
from tests.tuning.rows_factory import frame, repeats, run
from tuning.compare.compare import compare, configurations
from tuning.compare.selection import Chosen, Standing, choose, mean_std, records, standing


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


def test_a_candidate_stands_by_its_best_rate() -> None:
    """Its loss and that rate, once all its runs have ended; a rate that diverged is worse than any loss."""
    there = [run(lr=lr, val_loss=loss, run_id=f"{lr}") for lr, loss in ((0.1, 0.5), (0.2, 0.4), (0.4, 0.01))]
    lost = replace(there[2], diverged=True, val_loss=None)
    ids = [row.run_id for row in there]
    assert standing(records(frame(there)), ids) == Standing(0.01, 0.4, finished=True)
    assert standing(records(frame(there[:2], [lost])), ids) == Standing(0.4, 0.2, finished=True)
    assert standing(records(frame(there[:2])), ids) is None
    assert standing(records(frame(there[:2], [replace(lost, status="RUNNING")])), ids) is None
    assert standing(records(frame([replace(row, status="STOPPED") for row in there])), ids) == Standing(
        0.01, 0.4, finished=False
    )
    assert standing(records(frame([replace(lost, run_id="x")])), ["x"]) == Standing(math.inf, 0.4, finished=True)


def test_a_candidate_stands_by_the_rule_of_the_choice() -> None:
    """Accuracy counts upwards."""
    there = [run(lr=lr, val_acc=accuracy, run_id=f"{lr}") for lr, accuracy in ((0.1, 50.0), (0.2, 70.0))]
    assert standing(records(frame(there)), ["0.1", "0.2"], "val-acc") == Standing(-70.0, 0.2, finished=True)


def test_fresh_seeds_report_and_choose_nothing() -> None:
    """However good they are, another configuration is chosen; where they are the chosen one's, it is reported by them."""
    chosen = [run(lr=0.1, repeat=k, val_loss=0.4) for k in range(2)]
    other = [run(lr=0.2, repeat=k, val_loss=0.5) for k in range(2)]
    fresh = [run(lr=lr, repeat=k, val_loss=0.1, stage="confirm") for lr in (0.1, 0.2) for k in (2, 3, 4)]
    choice = choose(frame(chosen, other, fresh))["local-sgd", 16.0]
    assert choice.configuration.lr == 0.1
    assert choice.score == pytest.approx(0.4)
    assert choice.repeats == (2, 3, 4)
    assert not choose(frame(fresh))


def test_shorter_runs_choose_nothing() -> None:
    """A rung's run is no repeat of a whole one."""
    short = run(lr=0.2, val_loss=0.01, steps=512, stage="rung")
    assert choose(frame(run(lr=0.1, val_loss=0.5), short))["local-sgd", 16.0].configuration.lr == 0.1
    assert not choose(frame(short))


def test_an_unknown_rule_is_refused_with_those_there_are() -> None:
    """A select that would read the test split is no rule."""
    with pytest.raises(ValueError, match=r"'test-acc'.*val-loss, val-acc, train-loss"):
        choose(frame(run()), "test-acc")


def test_std_is_the_sample_one() -> None:
    """1, 2, 3 have mean 2 and sample standard deviation 1; one value has none."""
    assert mean_std([1.0, None, 2.0, 3.0]) == (2.0, 1.0)
    assert mean_std([5.0]) == (5.0, None)
    assert mean_std([None, math.nan]) == (None, None)


def test_what_is_chosen_is_taken_as_it_is() -> None:
    """Handed on, it is the same value; the comparison of it is that of the table, by its own rule."""
    table = frame(
        repeats("local-sgd", [60.0, 61.0]), [run(lr=0.2, repeat=k, train_loss=0.1, val_loss=9.0) for k in (0, 1)]
    )
    chosen = Chosen.of(table, "train-loss")
    assert Chosen.of(chosen) is chosen
    assert compare(chosen) == compare(table, "train-loss") != compare(table)
    assert configurations(chosen) == configurations(table, "train-loss")


def test_what_is_chosen_by_one_rule_is_not_taken_for_another_s() -> None:
    """Only the table can be chosen among anew."""
    with pytest.raises(ValueError, match="these runs are chosen by val-loss, not val-acc"):
        compare(Chosen.of(frame(run())), "val-acc")


def test_rows_are_taken_apart_by_rung_and_stage() -> None:
    """Those that may choose, those on real workers; a repeat that was run twice counts once."""
    whole, again = run(lr=0.1), run(lr=0.1, run_id="x", trial_id="x")
    fresh = run(lr=0.1, repeat=1, stage="confirm")
    real = run(lr=0.1, rung="distributed", stage="real")
    chosen = Chosen.of(frame(whole, again, fresh, real, run(lr=0.2, status="RUNNING")))
    (key,), configuration = chosen.choices, chosen.choices["local-sgd", 16.0].configuration
    assert len(chosen.rows) == 5
    assert [row["run_id"] for row in chosen.done] == [whole.run_id, fresh.run_id]
    assert [row["run_id"] for row in chosen.tried[key][configuration]] == [whole.run_id]
    assert [row["rung"] for row in chosen.real[key][configuration]] == ["distributed"]
