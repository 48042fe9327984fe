"""From windows to the cost of a step."""

import pytest

from cser_ray.bench.links.windows import Phase, combined, step_cost


def phase(*seconds: float, steps: int = 4, counted: int = 10, sent: int = 1000, ledger: float | None = None) -> Phase:
    """What a rank saw in windows of these durations, each after 2 steps without communication of 0.1 s each."""
    rounds = None if ledger is None else 5.0
    return Phase(steps, seconds, 2, (0.2,) * len(seconds), counted, sent, ledger, rounds)


def test_a_window_lasts_as_long_as_its_slowest_rank() -> None:
    """The median is over windows, each of them taken from the rank that needed longest in it."""
    measured = step_cost([phase(0.4, 0.8, 1.2), phase(0.8, 0.4, 2.0)])
    assert measured.local_ms == pytest.approx(100)
    assert measured.exposed_ms == pytest.approx(100)  # windows of 200, 200 and 500 ms a step
    assert measured.exposed_ms_iqr == pytest.approx(150)
    assert measured.steps == 12


def test_what_slows_the_machine_falls_on_both() -> None:
    """A window on a machine half as fast counts as what it exposes, not as what it lasts."""
    slowed = Phase(4, (0.5, 0.5, 0.9, 0.9, 0.9), 2, (0.2, 0.2, 0.4, 0.4, 0.4), 20, 0)
    measured = step_cost([slowed, slowed])
    assert measured.exposed_ms == pytest.approx(25)
    assert measured.exposed_ms_iqr == pytest.approx(0, abs=1e-9)


def test_counts_are_per_step_and_worker() -> None:
    """Bytes and collectives are divided by the steps in which they were counted, lead-in included."""
    measured = step_cost([phase(1, sent=1000, ledger=900), phase(1, sent=1200, ledger=900)])
    assert measured.interface_bytes == pytest.approx(110)
    assert measured.ledger_bytes == pytest.approx(90)
    assert measured.rounds == pytest.approx(0.5)


def test_what_nobody_counts_stays_unknown() -> None:
    """A peer has no ledger, and one window has no spread."""
    measured = step_cost([phase(1), phase(1)])
    assert measured.ledger_bytes is None
    assert measured.rounds is None
    assert measured.exposed_ms_iqr is None


def test_an_interval_is_its_ordinary_steps_and_those_around_its_end() -> None:
    """(H - s)/H of the ordinary plus s/H of the synchronising, for time, bytes and rounds alike."""
    ordinary = [phase(1.76, 1.76, steps=16, counted=32, sent=0, ledger=0)]
    synchronising = [phase(1.0, 1.0, steps=5, counted=10, sent=8000, ledger=7000)]
    measured = combined(ordinary, synchronising, interval=100)
    assert measured.local_ms == pytest.approx(100)
    assert measured.exposed_ms == pytest.approx((95 * 10 + 5 * 100) / 100)
    assert measured.interface_bytes == pytest.approx(8000 / 2 / 100)  # two synchronisations were counted
    assert measured.ledger_bytes == pytest.approx(7000 / 2 / 100)
    assert measured.window == "2x16 + 2x5"
