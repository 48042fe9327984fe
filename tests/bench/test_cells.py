"""The plan of cells: which methods at which ratios."""

import pytest

from cser_ray.bench.links.cells import Cell, baseline, plan
from cser_ray.budget import structure_for

PEERS = {"ddp": False, "post-local-sgd": True}


def test_the_baseline_comes_first_and_once() -> None:
    """Though nobody asked for it, and also where somebody did."""
    for methods in (["ddp", "csea"], ["ddp", "no-sync", "csea"]):
        cells = plan(methods, [8, 32], PEERS)
        assert cells[0] == baseline("sgd")
        assert [cell.method for cell in cells] == ["no-sync", "ddp", "csea", "csea"]


def test_a_method_with_knobs_has_a_cell_for_each_ratio_and_all_others_one() -> None:
    """Peers and methods without a ratio are not measured again at every one."""
    cells = [cell for cell in plan(["sgd", "ddp", "post-local-sgd", "cser"], [8, 32], PEERS) if cell != baseline("sgd")]
    assert [(cell.method, cell.ratio) for cell in cells] == [
        ("sgd", 1.0),
        ("ddp", None),
        ("post-local-sgd", 8.0),
        ("cser", 8.0),
        ("post-local-sgd", 32.0),
        ("cser", 32.0),
    ]


def test_our_methods_have_the_structure_of_the_budget() -> None:
    """(H, RC1, RC2) of a cell is what `structure_for` gives."""
    cell = next(cell for cell in plan(["cser"], [256], PEERS) if cell.method == "cser")
    structure = structure_for("cser", 256)
    assert (cell.reset_interval, cell.reset_ratio, cell.gradient_ratio) == (
        structure.reset_interval,
        structure.reset_ratio,
        structure.gradient_ratio,
    )


def test_a_delay_is_a_suffix() -> None:
    """csea+delay4 is csea, and its delay has a column of its own."""
    cell = next(cell for cell in plan(["csea+delay4"], [32], PEERS) if cell.method == "csea")
    assert cell.reset_delay == 4
    assert str(cell) == "csea+delay4 at R_C 32"


def test_a_peer_synchronises_every_r_c_steps() -> None:
    """Post-local SGD has its interval from the ratio, and a ratio that is no number of steps is refused."""
    assert Cell("post-local-sgd", 32, 32, 1.0) in plan(["post-local-sgd"], [32], PEERS)
    with pytest.raises(ValueError, match=r"R_C = 2\.5 is no whole number"):
        plan(["post-local-sgd"], [2.5], PEERS)


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ("ddq", "did you mean 'ddp'"),
        ("csea+late4", r"\+delay4"),
        ("ddp+delay4", "only methods of ours take a suffix"),
        ("csea-adamw", "choose the other --optimizer"),
    ],
)
def test_what_cannot_be_measured_is_named(method: str, message: str) -> None:
    """A typo, a wrong suffix, a delayed peer, and a method whose baseline is another's."""
    with pytest.raises(ValueError, match=message):
        plan([method], [32], PEERS)
