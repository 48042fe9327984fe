"""kill -9 of a process that writes rows, and of one that trains virtual workers."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cser_ray.store.read import decode
from cser_ray.store.rows import EpochRow, RunRow
from cser_ray.store.write import Store
from tests.faults.forks import KILLED, forks
from tests.faults.outcome import RESULTS, Episode, Outcome, compared, finished, undisturbed
from tests.store_rows import STUDY

WRITER = """
import pyarrow.parquet
from cser_ray.store.write import Store
from tests.store_rows import epoch_row, run_row

def run(uri, first):
    trial = Store(uri).trial("t", 0, flush_s=0.0)
    for k in range(int(first), 10**9):
        trial.epoch([epoch_row(k, val_loss=k / 7)])
        trial.runs([run_row(steps_done=k, val_loss=k / 7)])
        os.write(1, b"%d\\n" % k)
"""
TRAINER = """
import pyarrow.fs, pyarrow.parquet, torch, torch.func, sklearn.datasets
import tuning.execute.single
import cser_ray.train.loop, cser_ray.virtual
from cser_ray.commands.cli import main
torch.set_num_threads(1)

def run(*arguments):
    print("begun", flush=True)
    main(arguments)
"""
STEPS = 300
SETTINGS = f"--ratio 16 --workers 4 --steps {STEPS} --evaluations 60 --checkpoint-s 0"
METHODS = ("cser", "ef-sgd", "diloco", "csea-adamw")
"""Kinds of state: none, errors outside of the model, an outer momentum, moments."""


@contextmanager
def writer(home: Path) -> Iterator[Episode]:
    """As fast as it can write. Every acknowledged row must be there, whole, once, after every kill."""
    with forks(WRITER) as processes:

        def episode(seed: int, folder: Path, kills: int) -> Outcome:
            chance, outcome, first = random.Random(seed), Outcome(0), 0
            store = Store(str(folder))
            store.write_study(STUDY)
            for _ in range(kills):
                ended, lines = processes.run(store.uri, str(first), kill_after_s=chance.uniform(0.0, 0.2))
                assert ended == KILLED
                first = max([first, *(int(line) + 1 for line in lines if line)])
                outcome += Outcome(1) + _checked(folder, first)
            return outcome

        yield episode


def _checked(folder: Path, acknowledged: int) -> Outcome:
    """What is wrong with the files of a writer that acknowledged so many evaluations."""
    epochs = decode((folder / "history/t-a0.parquet").read_bytes(), EpochRow, "history").to_pylist()
    runs = decode((folder / "trials/t-a0.parquet").read_bytes(), RunRow, "trials").to_pylist()
    numbers = [row["evaluation"] for row in epochs]
    lost = len(set(range(acknowledged)) - set(numbers)) + (not runs or runs[-1]["steps_done"] < acknowledged - 1)
    wrong = sum(row["val_loss"] != row["evaluation"] / 7 for row in epochs)
    wrong += sum(row["val_loss"] != row["steps_done"] / 7 for row in runs)
    return Outcome(0, lost, len(numbers) - len(set(numbers)) + max(0, len(runs) - 1), wrong)


@contextmanager
def virtual(home: Path) -> Iterator[Episode]:
    """`cser-ray train`, the same command again after each kill. Its rows must be those of an undisturbed run."""
    with forks(TRAINER) as processes:

        def train(method: str, out: Path, kill_after_s: float | None = None) -> int:
            command = ("train", "--method", method, *SETTINGS.split(), "--out", str(out))
            return processes.run(*command, kill_after_s=kill_after_s)[0]

        def finish(method: str, out: Path) -> None:
            if not finished(out):
                assert train(method, out) == 0

        def episode(seed: int, folder: Path, kills: int) -> Outcome:
            chance, done = random.Random(seed), 0
            method = METHODS[seed % len(METHODS)]
            expected = undisturbed(home, method, lambda out: finish(method, out))
            out = folder / RESULTS
            while done < kills and train(method, out, chance.uniform(0.0, 0.6)) == KILLED:
                done += 1
            finish(method, out)
            assert not list(out.glob("checkpoints/*"))
            return compared(expected, out, done)

        yield episode
