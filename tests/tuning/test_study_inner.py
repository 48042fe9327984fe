"""The local step as a setting of a study: one for all of its methods, the reference's too."""

import math
from dataclasses import replace

import pytest

from cser_ray.communication.communicator import Communicator
from cser_ray.config import INNERS, RunConfig, config_at
from cser_ray.tasks import make_task
from cser_ray.train.build import make_optimizer, own_arguments
from tests.tuning.rows_factory import cell, frame, grid
from tuning.compare.compare import compare
from tuning.compare.render import heading
from tuning.execute.single import single_config
from tuning.study.defaults import with_task_defaults
from tuning.study.study import Study
from tuning.take_home.reproduce import settings_of_run


@pytest.mark.parametrize(
    ("inner", "name"), [("nesterov", "Nesterov"), ("adamw", "AdamW"), ("muon", "Muon")], ids=lambda v: v
)
@pytest.mark.parametrize("method", ["sgd", "cser", "partial-reset"])
def test_every_methods_optimizer_takes_it(method: str, inner: str, name: str) -> None:
    """Also the reference's, which then is the synchronous run of this local step."""
    config = config_at(method, 16.0, inner=inner, workers=2, beta2=0.97) if method != "sgd" else None
    config = config or config_at("sgd", 1.0, inner=inner, workers=2, beta2=0.97)
    model = make_task("digits").model()
    parameters = [p.detach().repeat(2, *[1] * p.dim()).requires_grad_() for p in model.parameters()]
    parameters = [type(next(model.parameters()))(p.detach()) for p in parameters]
    optimizer = make_optimizer(config, parameters, Communicator(2, group=None), 0.1, (0,))
    assert type(optimizer.local).__name__ == name
    assert optimizer.param_groups[0].get("betas") == (None if inner == "nesterov" else (0.9, 0.97))
    assert config.columns()["beta2"] == (None if inner == "nesterov" else 0.97)
    assert config.columns()["inner"] == inner


def test_rates_where_nobody_says_are_those_of_the_local_step() -> None:
    """SGD's are far too large for AdamW; what a user says stands."""
    grid = (3e-4, 1e-3, 3e-3, 1e-2)
    assert INNERS["adamw"].grid == INNERS["muon"].grid == grid
    assert with_task_defaults(Study, {"inner": "adamw"})["lrs"] == grid
    assert with_task_defaults(Study, {"task": "cifar100", "methods": ("adamw", "csea-adamw")})["lrs"] == grid
    assert with_task_defaults(Study, {"inner": "muon", "lrs": (0.1,)})["lrs"] == (0.1,)
    assert "lrs" not in with_task_defaults(Study, {"inner": "nesterov"})
    assert with_task_defaults(RunConfig, {"method": "cser-adamw"})["lr"] == INNERS["adamw"].single
    assert Study(inner="adamw").lrs == Study(methods=("adamw", "local-adamw")).lrs == grid
    assert Study().lrs == Study(methods=("sgd", "local-adamw")).lrs == INNERS["nesterov"].grid == (0.05, 0.1, 0.5)


def test_betas_are_settings_of_whoever_reads_them() -> None:
    """A second beta that no method has a use for is refused; what one was run with is printed by `best`."""
    with pytest.raises(ValueError, match=r"beta2 = 0\.99 would be ignored.*--inner"):
        Study(beta2=0.99)
    assert Study(inner="adamw", beta2=0.99).beta2 == Study(methods=("local-adamw",), beta2=0.99).beta2 == 0.99
    with pytest.raises(ValueError, match=r"beta2 = 0\.99 would be ignored by cser, which"):
        single_config({"method": "cser", "ratio": 16.0, "beta2": 0.99})
    config = single_config({"method": "cser", "ratio": 16.0, "beta2": 0.99, "inner": "adamw"})
    assert settings_of_run(config)["beta2"] == 0.99
    assert "beta2" not in settings_of_run(config_at("cser", 16.0))


@pytest.mark.parametrize(
    ("method", "inner", "words"),
    [
        ("cser-adamw", "muon", "that its name says: leave inner = muon out"),
        ("muloco", "adamw", "that its name says: leave inner = adamw out"),
        ("sparseloco", "muon", "that its name says: leave inner = muon out"),
        ("adamw", "muon", "that its name says: leave inner = muon out"),
        ("signum", "adamw", "of its own: leave inner = adamw out"),
        ("dgc", "muon", "of its own: leave inner = muon out"),
        ("cser", "lion", "there is no inner step 'lion'"),
    ],
)
def test_a_local_step_that_a_method_cannot_have_is_refused(method: str, inner: str, words: str) -> None:
    """In a sentence, when the study is made."""
    with pytest.raises(ValueError, match=words):
        Study(methods=(method,), ratios=(16.0,), inner=inner)


@pytest.mark.parametrize(("method", "inner"), [("sparseloco", "adamw"), ("sparta", "adamw"), ("muloco", "muon")])
def test_a_study_around_a_step_takes_the_methods_that_have_it_anyway(method: str, inner: str) -> None:
    """Their runs have the same local step with and without the setting."""
    study = Study(methods=("sgd", "no-sync", method), ratios=(16.0,), inner=inner, workers=4, steps=64)
    run = study.trial(method, 16.0, study.candidates(method, 16.0)[0], [0], "screen").runs[0]
    given, by_name = own_arguments(run, 9098), own_arguments(replace(run, inner="nesterov"), 9098)
    assert given["inner"] == by_name["inner"] == inner
    assert given["betas"] == by_name["betas"]
    assert (run.columns()["inner"], run.columns()["beta2"]) == (inner, 0.95)


def test_there_the_reference_is_the_studys_synchronous_run() -> None:
    """Whatever it is called: cost, floor and the rate without re-tuning are read from sgd's rows with AdamW inside."""
    adamw = {"inner": "adamw"}
    dense = grid("sgd", [70.0, 70.5], **adamw)
    silent = grid("no-sync", [40.0, 40.5], test_loss=2.0, **adamw)
    sparse, local = grid("sparseloco", [66.0, 66.5], **adamw), grid("local-sgd", [60.0, 60.5], **adamw)
    found = compare(frame(dense, silent, sparse, local))
    assert found.reference == "sgd"
    assert not [note for note in found.notes if "was not run" in note]
    assert cell(found, "sparseloco").value_retained is not None
    assert cell(found, "sparseloco").untuned_lr == dense[0].lr


def test_a_synchronous_run_that_is_named_by_its_step_serves_as_well() -> None:
    """`adamw` in a study around AdamW is what `sgd` is there; without the setting, sgd is no reference of SparseLoCo."""
    silent = grid("no-sync-adamw", [40.0, 40.5], ratio=math.inf, inner="adamw")
    rows = (
        grid("adamw", [70.0, 70.5], ratio=1.0, inner="adamw"),
        silent,
        grid("sparseloco", [66.0, 66.5], inner="adamw"),
    )
    found = compare(frame(*rows, grid("csea", [64.0, 64.5], inner="adamw")))
    assert found.reference == "adamw"
    assert not [note for note in found.notes if "was not run" in note]
    alone = compare(frame(grid("sgd", [70.0, 70.5]), grid("sparseloco", [66.0, 66.5])))
    assert alone.reference == "adamw"
    assert any(note.startswith("adamw was not run") for note in alone.notes)
    assert cell(alone, "sparseloco").untuned_lr is None


def test_the_comparison_says_it_and_two_of_them_have_no_winner() -> None:
    """What is measured against a reference with another local step is not told apart from it."""
    alike = frame(grid("csea", [80.0, 81.0], inner="adamw"), grid("local-sgd", [50.0, 51.0], inner="adamw"))
    assert "all around AdamW" in heading(compare(alike))
    mixed = compare(frame(grid("csea", [80.0, 81.0], inner="adamw"), grid("local-sgd", [50.0, 51.0])))
    assert any("inner" in problem for problem in mixed.problems)
    assert not any(verdict.winner for verdict in mixed.verdicts)
