"""A study as an MLflow experiment: a run is a run, with its settings as parameters and its curve as metrics by step."""

import os
from datetime import datetime
from typing import TYPE_CHECKING

from tuning.take_home.push.runs import KEY, Pushed, PushedRun, PushedStudy, Say, lacking

if TYPE_CHECKING:
    from mlflow import MlflowClient

BATCH = 1000
"""Metrics that a server takes at once."""


def push(study: PushedStudy, uri: str, say: Say) -> Pushed:
    """Add what is not there yet to the experiment of this name; `uri` as MLflow takes it, empty for its own default.

    Raises ValueError where MLflow is missing, cannot be reached, or has deleted the experiment.
    """
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # nothing but the runs leaves this machine
    try:
        from mlflow import MlflowClient
        from mlflow.exceptions import MlflowException
    except ImportError as error:
        raise lacking("MLflow", "mlflow", error) from error
    try:
        client = MlflowClient(uri or None)
        experiment = client.get_experiment_by_name(study.name)
        where = experiment.experiment_id if experiment else client.create_experiment(study.name)
        known = _known(client, where)
        new = [run for run in study.runs if run.key not in known]
        for number, run in enumerate(new, 1):
            _add(client, where, run)
            say(f"{number}/{len(new)} {run.run_id}")
    except MlflowException as error:
        raise ValueError(f"MLflow refuses the experiment {study.name!r}: {error}") from error
    place = client.tracking_uri
    return Pushed(f"MLflow experiment {study.name!r} in {place}", len(new), len(study.runs) - len(new))


def _known(client: "MlflowClient", experiment: str) -> set[str]:
    """Keys of the runs that are there whole; one that a killed push left half there is removed."""
    known: set[str] = set()
    token: str | None = None
    while True:
        page = client.search_runs([experiment], f"tags.`{KEY}` != ''", max_results=1000, page_token=token)
        for run in page:
            if run.info.status == "RUNNING":
                client.delete_run(run.info.run_id)
            else:
                known.add(run.data.tags[KEY])
        token = page.token
        if not token:
            return known


def _add(client: "MlflowClient", experiment: str, run: PushedRun) -> None:
    from mlflow.entities import Metric, Param, RunTag

    began, ended = run.row["started_at"], run.row.get("ended_at", run.row["started_at"])
    tags = {KEY: run.key, "status": run.row["status"], "trial": run.row["trial_id"]}
    there = client.create_run(experiment, _ms(began), tags, run.run_id).info.run_id
    points = [
        Metric(name, value, _ms(at), step) for step, at, values in run.curve for name, value in values.items()
    ] + [Metric(f"final_{name}", value, _ms(ended), run.row["steps_done"]) for name, value in run.results.items()]
    params = [Param(name, str(value)) for name, value in run.settings.items()]
    client.log_batch(there, params=params, tags=[RunTag("study", str(run.row["study"]))])
    for start in range(0, len(points), BATCH):
        client.log_batch(there, metrics=points[start : start + BATCH])
    client.set_terminated(there, "FINISHED", _ms(ended))


def _ms(time: datetime) -> int:
    return round(1000 * time.timestamp())
