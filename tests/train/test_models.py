"""The averaged models that a trial leaves: which ones, whole or not at all, by one process of many."""

import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cser_ray.communication.communicator import Communicator
from cser_ray.config import RunConfig
from cser_ray.errors import CserWarning
from cser_ray.store.checkpoint import DamagedError
from cser_ray.store.models import SMALL, ModelStore, decode, encode
from cser_ray.store.read import RunRow
from cser_ray.train.loop import train
from cser_ray.train.models import KeptModels, to_keep
from cser_ray.train.record import TrialIdentity
from tests.processes import run_processes
from tests.train.points import CPU, config
from tests.tuning.rows_factory import run

IDENTITY = TrialIdentity("study", "trial")


def trained(folder: Path, *configs: RunConfig, keep: str = "auto") -> list[RunRow]:
    """The rows of a trial of virtual workers that keeps its models in the folder."""
    folder.mkdir(exist_ok=True)
    communicator = Communicator(configs[0].workers, group=None)
    return train(configs, communicator, CPU, IDENTITY, models=KeptModels(str(folder), keep))


def test_every_run_of_a_small_trial_has_its_own_model(tmp_path: Path) -> None:
    """Stacked runs of several rates and repeats: as many files, no two of them with the same weights."""
    rows = trained(tmp_path, *(config("cser", lr=lr, repeat=k) for lr in (0.05, 0.1) for k in range(2)))
    store = ModelStore(str(tmp_path))
    assert store.sizes().keys() == {row.run_id for row in rows}
    weights = [decode(store.read(row.run_id) or b"")[0]["0.weight"] for row in rows]
    assert all(not torch.equal(a, b) for place, a in enumerate(weights) for b in weights[:place])


def test_the_model_is_there_before_its_row_says_finished(tmp_path: Path) -> None:
    """A kill between the two leaves a model without a row, which is harmless, and never the other way round."""
    there: list[tuple[str, int]] = []
    models = KeptModels(str(tmp_path))
    train(
        [config("cser", evaluations=2)], Communicator(4, group=None), CPU, IDENTITY,
        lambda epochs, runs: there.append((runs[0].status, len(ModelStore(str(tmp_path)).sizes()))), models=models,
    )  # fmt: skip
    assert there == [("RUNNING", 0), ("FINISHED", 1)]


def test_none_keeps_none_and_a_diverged_run_has_none(tmp_path: Path) -> None:
    """--keep-models none leaves no folder behind; a run that diverged has no model beside one that did not."""
    trained(tmp_path / "none", config("sgd"), keep="none")
    assert list((tmp_path / "none").iterdir()) == []
    rows = trained(tmp_path, config("sgd", lr=0.05), config("sgd", lr=1e6))
    assert [row.diverged for row in rows] == [False, True]
    assert ModelStore(str(tmp_path)).sizes().keys() == {rows[0].run_id}


def rows_at(*losses: tuple[float, int, float | None]) -> list[RunRow]:
    """Rows by learning rate, repeat and validation loss, None for diverged."""
    return [run("cser", lr=lr, repeat=repeat, val_loss=loss, diverged=loss is None) for lr, repeat, loss in losses]


@pytest.mark.parametrize(
    ("rows", "size", "keep", "kept"),
    [
        (rows_at((0.1, 0, 1.0), (0.1, 1, 1.0)), SMALL // 2, "auto", [0, 1]),
        (rows_at((0.1, 0, 1.0), (0.1, 1, 1.0)), SMALL // 2 + 1, "auto", [0]),
        (rows_at((0.1, 0, 1.0), (0.1, 1, 1.0)), SMALL, "all", [0, 1]),
        (rows_at((0.1, 0, 0.5), (0.1, 1, 3.0), (0.2, 0, 1.0), (0.2, 1, 1.0)), SMALL, "auto", [2]),
        (rows_at((0.1, 0, None), (0.1, 1, 0.5), (0.2, 0, 1.0), (0.2, 1, 1.0)), SMALL, "auto", [2]),
        (rows_at((0.1, 0, None), (0.1, 1, 0.5)), SMALL, "auto", [1]),
        (rows_at((0.1, 0, None)), 1, "all", []),
    ],
)  # fmt: skip
def test_large_models_are_kept_of_the_best_rate_only(rows: list[RunRow], size: int, keep: str, kept: list[int]) -> None:
    """64 MB a trial is the border; beyond, the first repeat of the rate with fewest diverged, then the lowest mean loss."""
    assert to_keep(rows, size, keep) == kept


def test_one_of_several_processes_writes_what_the_virtual_workers_write(tmp_path: Path) -> None:
    """Two real workers over gloo leave one file, with the weights of their virtual twin."""
    asked = config("cser", workers=2)
    virtual = trained(tmp_path / "virtual", asked)[0]
    real = replace(asked, rung="distributed")
    (tmp_path / "real").mkdir()
    models = KeptModels(str(tmp_path / "real"))
    rows = run_processes(2, lambda: train([real], Communicator(), CPU, IDENTITY, models=models), 60.0)
    assert [row.run_id for (row,) in rows] == [virtual.run_id] * 2
    a, b = (decode(ModelStore(str(tmp_path / name)).read(virtual.run_id) or b"")[0] for name in ("virtual", "real"))
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=1e-4, atol=1e-5)


def test_a_model_that_cannot_be_written_is_said_and_the_rows_are_there(tmp_path: Path) -> None:
    """A file stands where its folder should be: the run ends with its result all the same."""
    (tmp_path / "models").touch()
    with pytest.warns(CserWarning, match="Models of trial were not kept: .*models"):
        (row,) = trained(tmp_path, config("sgd"))
    assert row.status == "FINISHED"


@pytest.mark.parametrize("place", [10, -1])
def test_one_changed_bit_is_noticed(tmp_path: Path, place: int) -> None:
    """In the header's text or in the last weight: the file is named."""
    (row,) = trained(tmp_path, config("sgd"))
    store = ModelStore(str(tmp_path))
    path = Path(store.path(row.run_id))
    data = bytearray(path.read_bytes())
    place = data.index(b"test_acc") + 12 if place > 0 else place
    data[place] ^= 1
    path.write_bytes(data)
    with pytest.raises(DamagedError, match=rf"{os.path.basename(path)}: not a model as it was written"):
        store.read(row.run_id)


@settings(deadline=None)
@given(st.binary(max_size=200), st.integers(0, 400))
def test_no_bytes_of_somebody_else_are_more_than_damaged(data: bytes, place: int) -> None:
    """Whatever a file holds, alone or put into a good one, it is refused by one error or is the model as it was."""
    good = encode({"x": torch.arange(30.0)}, {"run_id": "r"})
    for file in (data, good[:place] + data + good[place + len(data) :]):
        try:
            tensors, facts = decode(file)
        except DamagedError:
            continue
        assert torch.equal(tensors["x"], torch.arange(30.0))
        assert facts["run_id"] == "r"


def test_a_model_that_does_not_say_what_it_is_is_damaged(tmp_path: Path) -> None:
    """Also one with a right checksum, as somebody else could make it."""
    store = ModelStore(str(tmp_path))
    store.write("r", encode({"x": torch.zeros(1)}, {"run_id": "r", "task": "digits"}))
    with pytest.raises(DamagedError, match="it does not say its model, method"):
        store.read("r")


@pytest.mark.parametrize("name", ["../study", "a/b", "", ".hidden"])
def test_an_id_of_somebody_else_leads_nowhere(tmp_path: Path, name: str) -> None:
    """Only names of files inside the folder are read."""
    with pytest.raises(ValueError, match="names no file"):
        ModelStore(str(tmp_path)).read(name)


def test_an_unknown_word_is_refused() -> None:
    """With the words there are."""
    with pytest.raises(ValueError, match=r"there is no way to keep models 'best'\. Known: auto, all, none"):
        KeptModels("x", "best")
