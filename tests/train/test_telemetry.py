"""What a trial tells Prometheus is what its ledger and its rows say."""

import json
import re
from pathlib import Path

import pytest
import yaml

from cser_ray.communication.communicator import Communicator
from cser_ray.train.record import Record, TrialIdentity
from cser_ray.train.stack import Stack
from cser_ray.train.telemetry import COUNTERS, GAUGES, levels, totals
from tests.processes import run_processes
from tests.train.points import CPU, N, config

FOLDER = Path(__file__).parents[2] / "dashboards/grafana"


def stepped(method: str, communicator: Communicator | None = None, evaluate: bool = True) -> tuple[Stack, Record]:
    """A trial after 8 of its 12 steps, two runs stacked."""
    stack = Stack([config(method, lr=lr) for lr in (0.05, 0.1)], communicator or Communicator(N, group=None), CPU)
    record = Record(stack, TrialIdentity("study", "trial"))
    for _ in range(8):
        stack.step()
    if evaluate:
        record.evaluate(last=False)
    return stack, record


def test_before_the_first_evaluation_only_the_ledger_speaks() -> None:
    """Steps, bytes and the ratio; no norm is known."""
    stack, record = stepped("ef-sgd", evaluate=False)
    assert totals(stack)["cser_steps"] == 8
    assert levels(stack, record).keys() == {"cser_realised_ratio"}


@pytest.mark.parametrize("method", ["sgd", "ef-sgd", "cser"])
def test_the_numbers_are_those_of_the_rows(method: str) -> None:
    """Bytes and ratio exactly; of the norms the larger of the two runs; no error norm where no error is kept."""
    stack, record = stepped(method)
    rows, found = record.run_rows, totals(stack) | levels(stack, record)
    assert found["cser_bytes_sent"] == rows[0].bytes_sent > 0
    assert found["cser_realised_ratio"] == rows[0].realised_ratio
    assert found["cser_consensus_distance"] == max(row.consensus_distance or 0.0 for row in rows)
    errors = [row.error_norm for row in rows if row.error_norm is not None]
    assert found.get("cser_error_norm") == max(errors, default=None)
    assert bool(errors) == (method == "ef-sgd")


def test_without_communication_there_is_no_ratio() -> None:
    """Nothing was sent, and no number stands for it."""
    stack, record = stepped("no-sync")
    assert totals(stack)["cser_bytes_sent"] == 0
    assert "cser_realised_ratio" not in levels(stack, record)


def test_real_workers_wait_in_resets_for_a_part_of_their_communication() -> None:
    """CSER synchronises both; evaluation, which waits too, is in neither."""

    def waits() -> dict[str, float]:
        stack, _ = stepped("cser", Communicator())
        assert stack.communicator.waits["evaluation"] > 0
        return totals(stack)

    for found in run_processes(N, waits, 60.0):
        assert 0 < found["cser_reset_seconds"] < found["cser_communication_seconds"] < 30


def test_virtual_workers_wait_for_nobody() -> None:
    """They average in memory."""
    found = totals(stepped("cser")[0])
    assert found["cser_reset_seconds"] == found["cser_communication_seconds"] == 0


# ----------------------------------------------------------------------------------------- the files for Grafana


def test_the_rules_read_what_trials_tell() -> None:
    """Every metric is named in a rule, and no rule names another."""
    rules = (FOLDER / "rules.yml").read_text()
    assert set(re.findall(r"\bray_cser_\w+", rules)) == {
        *(f"ray_{name}_total" for name in COUNTERS), *(f"ray_{name}" for name in GAUGES)
    }  # fmt: skip


def test_every_panel_draws_a_rule_and_every_rule_but_the_speed_has_a_panel() -> None:
    """The dashboard and the rules go together; a panel says what its number means."""
    rules = {rule["record"] for rule in yaml.safe_load((FOLDER / "rules.yml").read_text())["groups"][0]["rules"]}
    panels = json.loads((FOLDER / "cser-ray.json").read_text())["panels"]
    drawn = [target["expr"].partition("{")[0] for panel in panels for target in panel["targets"]]
    assert sorted(drawn) == sorted(rules - {"cser:steps:rate"})
    assert all(len(panel["description"]) > 40 for panel in panels)
    assert len({panel["id"] for panel in panels}) == len(panels) == 7


def test_the_panels_can_be_filtered() -> None:
    """By data source, study and trial, all of which the dashboard asks for itself."""
    dashboard = json.loads((FOLDER / "cser-ray.json").read_text())
    assert [variable["name"] for variable in dashboard["templating"]["list"]] == ["datasource", "study", "trial"]
    for panel in dashboard["panels"]:
        assert panel["datasource"]["uid"] == "${datasource}"
        assert all('{study=~"$study", trial=~"$trial"}' in target["expr"] for target in panel["targets"])
