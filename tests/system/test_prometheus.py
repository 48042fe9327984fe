"""The panels of Grafana over a real Prometheus that scrapes a real study; needs the Debian package `prometheus`."""

import json
import socket
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from cser_ray.bench.hosts.ray_session import PROGRAMS, session

pytestmark = [pytest.mark.system, pytest.mark.ray]

FOLDER = Path(__file__).parents[2] / "dashboards/grafana"
STUDY = (
    "tune --methods ef-sgd,cser --ratios 16 --lrs .05 --repeats 1 --workers 2 --steps 3000 --evaluations 30 "
    "--distributed 1 --max-concurrent 2"
)
WAIT_S = 400

RULES_TEST = """
rule_files: [rules.yml]
evaluation_interval: 5s
tests:
  - interval: 5s
    input_series:
      # two processes, one of them at half the speed
      - {series: 'ray_cser_steps_total{study="s", trial="t", method="cser", rung="distributed", process="0"}', values: '0+100x60'}
      - {series: 'ray_cser_steps_total{study="s", trial="t", method="cser", rung="distributed", process="1"}', values: '0+50x60'}
      - {series: 'ray_cser_bytes_sent_total{study="s", trial="t", method="cser", rung="distributed", process="0"}', values: '0+3000x60'}
      - {series: 'ray_cser_bytes_sent_total{study="s", trial="t", method="cser", rung="distributed", process="1"}', values: '0+1000x60'}
      - {series: 'ray_cser_reset_seconds_total{study="s", trial="t", method="cser", rung="distributed", process="0"}', values: '0+2.5x60'}
      - {series: 'ray_cser_reset_seconds_total{study="s", trial="t", method="cser", rung="distributed", process="1"}', values: '0+1.25x60'}
      - {series: 'ray_cser_realised_ratio{study="s", trial="t", method="cser", rung="distributed", process="0"}', values: '16+0x60'}
      - {series: 'ray_cser_error_norm{study="s", trial="t", method="cser", rung="distributed", process="0"}', values: '2+0x60'}
      - {series: 'ray_cser_error_norm{study="s", trial="t", method="cser", rung="distributed", process="1"}', values: '3+0x60'}
      # a trial that has ended: Ray goes on exporting what it said last
      - {series: 'ray_cser_steps_total{study="s", trial="over", method="cser", rung="virtual", process="0"}', values: '900+0x60'}
      - {series: 'ray_cser_realised_ratio{study="s", trial="over", method="cser", rung="virtual", process="0"}', values: '16+0x60'}
    promql_expr_test:
      - {expr: 'cser:steps:rate', eval_time: 3m, exp_samples: [{labels: 'cser:steps:rate{study="s", trial="t", method="cser", rung="distributed"}', value: 10}]}
      - {expr: 'cser:step_seconds', eval_time: 3m, exp_samples: [{labels: 'cser:step_seconds{study="s", trial="t", method="cser", rung="distributed"}', value: 0.1}]}
      - {expr: 'cser:bytes_sent:rate', eval_time: 3m, exp_samples: [{labels: 'cser:bytes_sent:rate{study="s", trial="t", method="cser", rung="distributed"}', value: 400}]}
      - {expr: 'cser:reset:share', eval_time: 3m, exp_samples: [{labels: 'cser:reset:share{study="s", trial="t", method="cser", rung="distributed"}', value: 0.375}]}
      - {expr: 'cser:realised_ratio', eval_time: 3m, exp_samples: [{labels: 'cser:realised_ratio{study="s", trial="t", method="cser", rung="distributed"}', value: 16}]}
      - {expr: 'cser:error_norm', eval_time: 3m, exp_samples: [{labels: 'cser:error_norm{study="s", trial="t", method="cser", rung="distributed"}', value: 3}]}
"""  # noqa: E501 - a line a series


def test_the_rules_are_right_and_reckon_by_hand(tmp_path: Path) -> None:
    """promtool takes rules and configuration; the slowest process is the speed, and a trial that ended has no series."""
    subprocess.run(["promtool", "check", "config", str(FOLDER / "prometheus.yml")], check=True, capture_output=True)
    (tmp_path / "rules.yml").write_bytes((FOLDER / "rules.yml").read_bytes())
    (tmp_path / "test.yml").write_text(RULES_TEST)
    done = subprocess.run(["promtool", "test", "rules", "test.yml"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], list[dict[str, Any]]]]:
    """What a Prometheus with our configuration answers about a study of two virtual trials and a real one, now over."""
    with session() as (base, environment):
        place = tmp_path_factory.mktemp("prometheus")
        (place / "rules.yml").write_bytes((FOLDER / "rules.yml").read_bytes())
        settings = yaml.safe_load((FOLDER / "prometheus.yml").read_text())
        settings["global"] = dict.fromkeys(settings["global"], "1s")
        (found,) = settings["scrape_configs"][0]["file_sd_configs"]
        found["files"] = [path.replace("/tmp/", f"{base}/") for path in found["files"]]
        found["refresh_interval"] = "1s"
        (place / "prometheus.yml").write_text(yaml.safe_dump(settings))
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{free.getsockname()[1]}"
        command = ["prometheus", f"--config.file={place / 'prometheus.yml'}", f"--web.listen-address={address}"]
        study = [str(PROGRAMS / "cser-ray"), *STUDY.split(), "--out", str(base / "study")]
        began = time.time()
        with subprocess.Popen([*command, f"--storage.tsdb.path={place / 'data'}"], stderr=subprocess.DEVNULL) as server:
            try:
                environment |= {"RAY_metrics_report_interval_ms": "1000"}
                subprocess.run(study, env=environment, check=True, capture_output=True, timeout=WAIT_S)

                def ask(expression: str) -> list[dict[str, Any]]:
                    """As Grafana asks for a panel: series with their values from the beginning of the study to now."""
                    span = {"query": expression, "start": began, "end": time.time(), "step": 1}
                    url = f"http://{address}/api/v1/query_range?{urllib.parse.urlencode(span)}"
                    with urllib.request.urlopen(url, timeout=10) as answer:
                        found: list[dict[str, Any]] = json.load(answer)["data"]["result"]
                    return found

                yield ask
            finally:
                server.terminate()


def panels() -> dict[str, str]:
    """The query of each panel, with nothing left out by the variables."""
    dashboard = json.loads((FOLDER / "cser-ray.json").read_text())
    return {
        panel["title"]: panel["targets"][0]["expr"].replace("$study", ".*").replace("$trial", ".*")
        for panel in dashboard["panels"]
    }


def test_every_panel_has_data_of_the_study(answers: Callable[[str], list[dict[str, Any]]]) -> None:
    """Of virtual trials and of the real one, wherever there is something to tell, and the numbers are possible ones."""
    series = {title: answers(expression) for title, expression in panels().items()}
    trials = {title: {one["metric"]["trial"] for one in found} for title, found in series.items()}
    every = {"ef-sgd-16-c0-screen", "cser-16-c0-screen", "cser-16-c0-real"}
    waits = ("Share of time in resets", "Share of time in communication")  # virtual workers wait for nobody
    only = {"Error norm": {"ef-sgd-16-c0-screen"}} | {title: {"cser-16-c0-real"} for title in waits}
    assert trials == dict.fromkeys(series, every) | only

    def values(title: str, trial: str = "") -> list[float]:
        chosen = [one for one in series[title] if one["metric"]["trial"] == trial or not trial]
        return [float(value) for one in chosen for _, value in one["values"]]

    assert all(0 < value < 10 for value in values("Step time"))
    assert all(14 < value < 18 for value in values("Achieved ratio R_C"))
    assert max(values("Bytes on the wire, a worker", "cser-16-c0-real")) > 1000
    resets, all_of_it = map(values, waits)
    assert 0 < max(resets) < max(all_of_it) < 1


def test_the_variables_of_the_dashboard_find_the_study(answers: Callable[[str], list[dict[str, Any]]]) -> None:
    """`label_values` asks for the labels of this metric."""
    labels = [one["metric"] for one in answers("ray_cser_steps_total")]
    assert {label["study"] for label in labels} == {"study"}
    assert {label["process"] for label in labels if label["rung"] == "distributed"} == {"0", "1"}
