"""The local step as a setting of a study: one for all of its methods, the reference's too."""

import pytest

from cser_ray.communication.communicator import Communicator
from cser_ray.config import config_at
from cser_ray.tasks import make_task
from cser_ray.train.build import make_optimizer
from tests.tuning.rows_factory import frame, grid
from tuning.compare.compare import compare
from tuning.compare.render import heading
from tuning.study.defaults import RATES_AROUND, with_task_defaults
from tuning.study.study import Study


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
    assert with_task_defaults(Study, {"inner": "adamw"})["lrs"] == RATES_AROUND["adamw"]["lrs"]
    assert with_task_defaults(Study, {"inner": "muon", "lrs": (0.1,)})["lrs"] == (0.1,)
    assert "lrs" not in with_task_defaults(Study, {"inner": "nesterov"})


@pytest.mark.parametrize(
    ("method", "inner", "words"),
    [
        ("cser-adamw", "adamw", "that its name says: leave inner = adamw out"),
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


def test_the_comparison_says_it_and_two_of_them_have_no_winner() -> None:
    """What is measured against a reference with another local step is not told apart from it."""
    alike = frame(grid("csea", [80.0, 81.0], inner="adamw"), grid("local-sgd", [50.0, 51.0], inner="adamw"))
    assert "all around AdamW" in heading(compare(alike))
    mixed = compare(frame(grid("csea", [80.0, 81.0], inner="adamw"), grid("local-sgd", [50.0, 51.0])))
    assert any("inner" in problem for problem in mixed.problems)
    assert not any(verdict.winner for verdict in mixed.verdicts)
