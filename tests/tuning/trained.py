"""A study whose runs were trained in this process, stacked as in a trial: real rows and models without Ray."""

from pathlib import Path

import torch

from cser_ray.communication.communicator import Communicator
from cser_ray.store.read import EpochRow, RunRow
from cser_ray.store.write import Store
from cser_ray.train.loop import train
from cser_ray.train.models import KeptModels
from cser_ray.train.record import TrialIdentity
from tests.tuning.study_factory import EMPTY, due_trials
from tuning.study.study import Study
from tuning.study.trials import Trial


def trained(folder: Path, study: Study, keep: str = "auto") -> str:
    """The URI of the results folder of what a study can start at once, trained; `keep`: which models, as `KeptModels`.

    The rows bear the folder's name as their study's.
    """
    store = Store(str(folder))
    store.write_study({"fingerprint": study.fingerprint()})
    for trial in due_trials(study, EMPTY):
        train_trial(store, trial, study.workers, TrialIdentity(folder.name, trial.trial_id, 0, trial.stage), keep)
    return store.uri


def train_trial(store: Store, trial: Trial, workers: int, identity: TrialIdentity, keep: str) -> None:
    """Train the runs of one trial and write their rows."""
    with store.trial(trial.trial_id, identity.attempt) as writer:

        def report(epochs: list[EpochRow], runs: list[RunRow]) -> None:
            writer.epoch(epochs)
            writer.runs(runs)

        communicator, models = Communicator(workers, group=None), KeptModels(store.uri, keep)
        train(trial.runs, communicator, torch.device("cpu"), identity, report, models=models)
