"""The cases of a link: which methods at which ratios."""

import pytest

from cser_ray.bench.links.cases import Case, baseline, make_cases
from cser_ray.budget import structure_for

PEERS = {"ddp": False, "post-local-sgd": True}


def test_the_baseline_comes_first_and_once() -> None:
    """Though nobody asked for it, and also where somebody did."""
    for methods in (["ddp", "csea"], ["ddp", "no-sync", "csea"]):
        cases = make_cases(methods, [8, 32], PEERS)
        assert cases[0] == baseline("sgd")
        assert [case.method for case in cases] == ["no-sync", "ddp", "csea", "csea"]


def test_a_method_with_knobs_has_a_cell_for_each_ratio_and_all_others_one() -> None:
    """Peers and methods without a ratio are not measured again at every one."""
    cases = [
        case for case in make_cases(["sgd", "ddp", "post-local-sgd", "cser"], [8, 32], PEERS) if case != baseline("sgd")
    ]
    assert [(case.method, case.ratio) for case in cases] == [
        ("sgd", 1.0),
        ("ddp", None),
        ("post-local-sgd", 8.0),
        ("cser", 8.0),
        ("post-local-sgd", 32.0),
        ("cser", 32.0),
    ]


def test_our_methods_have_the_structure_of_the_budget() -> None:
    """(H, RC1, RC2) of a case is what `structure_for` gives."""
    case = next(case for case in make_cases(["cser"], [256], PEERS) if case.method == "cser")
    structure = structure_for("cser", 256)
    assert (case.reset_interval, case.reset_ratio, case.gradient_ratio) == (
        structure.reset_interval,
        structure.reset_ratio,
        structure.gradient_ratio,
    )


def test_a_delay_is_a_suffix() -> None:
    """csea+delay4 is csea, and its delay has a column of its own."""
    case = next(case for case in make_cases(["csea+delay4"], [32], PEERS) if case.method == "csea")
    assert case.reset_delay == 4
    assert str(case) == "csea+delay4 at R_C 32"


def test_a_peer_synchronises_every_r_c_steps() -> None:
    """Post-local SGD has its interval from the ratio, and a ratio that is no number of steps is refused."""
    assert Case("post-local-sgd", 32, 32, 1.0) in make_cases(["post-local-sgd"], [32], PEERS)
    with pytest.raises(ValueError, match=r"R_C = 2\.5 is no whole number"):
        make_cases(["post-local-sgd"], [2.5], PEERS)


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ("ddq", "did you mean 'ddp'"),
        ("csea+late4", r"\+delay4"),
        ("ddp+delay4", "only methods of ours take a suffix"),
        ("csea-adamw", "choose --optimizer adamw"),
    ],
)
def test_what_cannot_be_measured_is_named(method: str, message: str) -> None:
    """A typo, a wrong suffix, a delayed peer, and a method whose baseline is another's."""
    with pytest.raises(ValueError, match=message):
        make_cases([method], [32], PEERS)
