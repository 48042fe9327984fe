"""The searcher: what Tune is told to run next."""

from pathlib import Path

import pytest

from cser_ray.config import RunConfig
from tuning.execute.search import StudySearcher
from tuning.study.trials import Trial


def trial(name: str, runs: int = 1, rung: str = "virtual") -> Trial:
    """A trial of so many runs."""
    return Trial(name, "screen", tuple(RunConfig(method="sgd", ratio=1, repeat=k, rung=rung) for k in range(runs)))


class Stages:
    """A plan in stages: the next one is ready when all of the last is done; a failed trial is done."""

    def __init__(self, *stages: list[Trial]) -> None:
        self.stages, self.done = list(stages), set[str]()

    def __call__(self, failed: frozenset[str]) -> list[Trial]:
        for stage in self.stages:
            if left := [trial for trial in stage if trial.trial_id not in self.done | failed]:
                return left
        return []


def searcher(plan: Stages, real_at_once: int = 1, total: int | None = None) -> StudySearcher:
    """One that hands out names."""
    return StudySearcher(plan, lambda trial: {"name": trial.trial_id}, real_at_once, total)


def test_the_longest_goes_first() -> None:
    """So that no long one is left over at the end; equally long ones in the order of the plan."""
    of = searcher(Stages([trial("a"), trial("b", 3), trial("c"), trial("d", 3)]))
    assert [of.suggest(str(k)) for k in range(4)] == [{"name": name} for name in "bdac"]


def test_a_later_stage_waits() -> None:
    """While trials run that it depends on there is nothing to suggest; afterwards there is; in the end it is over."""
    plan = Stages([trial("a"), trial("b")], [trial("c")])
    of = searcher(plan)
    assert [of.suggest(k) for k in "123"] == [{"name": "a"}, {"name": "b"}, None]
    plan.done |= {"a"}
    of.on_trial_complete("1")
    assert of.suggest("3") is None
    plan.done |= {"b"}
    of.on_trial_complete("2")
    assert of.suggest("3") == {"name": "c"}
    plan.done |= {"c"}
    of.on_trial_complete("3")
    assert of.suggest("4") == "FINISHED"


def test_a_failed_trial_does_not_come_back() -> None:
    """The plan hears of it and goes on with the next stage."""
    plan = Stages([trial("a")], [trial("b")])
    of = searcher(plan)
    of.suggest("1")
    of.on_trial_complete("1", error=True)
    assert of.suggest("2") == {"name": "b"}


def test_a_trial_is_handed_out_once() -> None:
    """Even where its rows are not to be seen yet when it has ended."""
    of = searcher(Stages([trial("a")]))
    of.suggest("1")
    of.on_trial_complete("1")
    assert of.suggest("2") == "FINISHED"


@pytest.mark.parametrize("fit", [1, 2])
def test_real_trials_start_when_they_fit(fit: int) -> None:
    """One too many would wait for its workers inside Ray Train until that gives up."""
    of = searcher(Stages([trial(name, rung="distributed") for name in "abc"]), fit)
    assert [of.suggest(str(k)) for k in range(fit + 1)] == [{"name": name} for name in "abc"[:fit]] + [None]
    of.on_trial_complete("0")
    assert of.suggest("9") == {"name": "abc"[fit]}


def suggestions(of: StudySearcher, count: int) -> list[str | None]:
    """The names handed out, one call after the other."""
    given = [of.suggest(str(k)) for k in range(count)]
    return [one["name"] if isinstance(one, dict) else one for one in given]


def test_the_last_real_trial_starts_beside_the_last_virtual_ones() -> None:
    """Then Tune is told that there is no more, so that it keeps no idle actor on a CPU."""
    stage = [trial("a", 5, rung="distributed"), trial("b"), trial("c", 3)]
    assert suggestions(searcher(Stages(stage), 1, total=3), 5) == ["c", "b", "a", "FINISHED", "FINISHED"]


@pytest.mark.parametrize(("real", "fit", "total"), [(1, 1, None), (2, 1, 4), (1, 1, 4)], ids=["resumed", "two", "more"])
def test_other_real_trials_wait_for_the_virtual_ones(real: int, fit: int, total: int | None) -> None:
    """Where more is to come, or perhaps to come, an idle actor of Tune's could hold the CPUs that they wait for."""
    plan = Stages([*(trial(f"r{k}", rung="distributed") for k in range(real)), trial("b"), trial("c")])
    of = searcher(plan, fit, total)
    assert suggestions(of, 3) == ["b", "c", None]
    of.on_trial_complete("0")
    assert suggestions(of, 1) == [None]
    of.on_trial_complete("1")
    assert suggestions(of, 2)[0] == "r0"


def test_it_has_no_state_worth_saving(tmp_path: Path) -> None:
    """Tune may ask for it at any time."""
    searcher(Stages()).save(str(tmp_path / "x"))
    searcher(Stages()).restore(str(tmp_path / "x"))
