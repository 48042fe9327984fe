"""The folder of a study: the same on a disk and in a bucket, and refused when it is somebody else's."""

import json
import math
import pickle
import random
import re

import pytest
import torch

from cser_ray.errors import CserWarning
from cser_ray.store.checkpoint import COMMON, CheckpointStore, Manifest
from cser_ray.store.folder import Folder
from cser_ray.store.models import FACTS, ModelStore, decode, encode
from cser_ray.store.read import read_history, read_runs
from cser_ray.store.write import Store, check_same_study
from tests.store_rows import STUDY, epoch_row, run_row


@pytest.fixture(scope="module")
def s3_endpoint():
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    yield f"{host}:{port}"
    server.stop()


@pytest.fixture
def s3(s3_endpoint, monkeypatch):
    """The URI of a new bucket; the server's address comes from the environment, as a user of MinIO would give it."""
    from pyarrow.fs import S3FileSystem

    settings = {"AWS_ACCESS_KEY_ID": "k", "AWS_SECRET_ACCESS_KEY": "s", "AWS_REGION": "us-east-1"}
    for name, value in {**settings, "AWS_ENDPOINT_URL": f"http://{s3_endpoint}"}.items():
        monkeypatch.setenv(name, value)
    bucket = f"bucket-{random.randrange(10**9)}"
    S3FileSystem(endpoint_override=s3_endpoint, scheme="http", allow_bucket_creation=True).create_dir(bucket)
    return f"s3://{bucket}/some/prefix"


@pytest.fixture(params=["local", "s3"])
def uri(request, tmp_path):
    """A results folder that is not there yet, on a disk and in a bucket."""
    return str(tmp_path / "a b%20c" / "results") if request.param == "local" else request.getfixturevalue("s3")


def test_what_is_written_is_read(uri):
    """Study, runs and curves come back from a disk and from a bucket by the same code."""
    store = Store(uri)
    store.write_study(STUDY)
    with store.trial("t", 0) as trial:
        trial.epoch([epoch_row(0), epoch_row(1)])
        trial.runs([run_row("r"), run_row("q")])
    assert store.read_study()["fingerprint"]["workers"] == 4
    assert read_runs(uri)["run_id"].tolist() == ["r", "q"]
    assert read_history(uri)["evaluation"].tolist() == [0, 1]


def test_models_are_written_read_and_removed(uri):
    """On a disk and in a bucket; a run without a model has none."""
    Folder(uri).make()
    store = ModelStore(uri)
    assert (store.read("r"), store.sizes()) == (None, {})
    facts = dict.fromkeys(FACTS, "97.2") | {"run_id": "r"}
    data = encode({"x": torch.arange(3.0), "n": torch.tensor(7)}, facts)
    store.write("r", data)
    assert store.sizes() == {"r": len(data)}
    tensors, facts = decode(store.read("r"))
    assert (tensors["x"].tolist(), tensors["n"].item(), facts["test_acc"]) == ([0, 1, 2], 7, "97.2")
    store.remove("r")
    assert store.read("r") is None


def test_checkpoints_are_written_read_and_removed(uri):
    """The last two stay, on a disk and in a bucket, and in the end none does; removing nothing is no error."""
    Folder(uri).make()
    store = CheckpointStore(uri, "t")
    store.remove()
    for step in (1, 2, 3):
        store.begin(step)
        digest = store.write(step, COMMON, {"x": torch.arange(step)}, {"step": step})
        store.commit(step, Manifest({}, {COMMON: digest.hex()}))
    assert store.steps() == [3, 2]
    tensors, state = store.read(3, COMMON, store.manifest(3))
    assert (tensors["x"].tolist(), state) == ([0, 1, 2], {"step": 3})
    store.remove()
    assert store.steps() == []


def test_a_folder_that_vanished_is_not_made_anew(tmp_path):
    """By way of a folder in it."""
    with pytest.raises(FileNotFoundError, match="the folder has vanished"):
        CheckpointStore(str(tmp_path / "gone"), "t").begin(1)
    assert list(tmp_path.iterdir()) == []


def test_the_next_attempt_follows_the_files(uri):
    """A restarted trial takes a number that no file of its own has, whatever other trials have."""
    store = Store(uri)
    store.write_study(STUDY)
    assert store.next_attempt("t") == 0
    with store.trial("t", 9) as trial, store.trial("t-a9", 12) as other:
        trial.epoch([epoch_row(0, attempt=9)])
        other.runs([run_row(trial_id="t-a9", attempt=12)])
    assert store.next_attempt("t") == 10


def test_another_study_is_refused(uri):
    """A folder of another study is left as it is, and the error names the settings that differ and no others."""
    Store(uri).write_study(STUDY)
    other = {"fingerprint": {**STUDY["fingerprint"], "workers": 8, "outer": {"lr": 0.5}, "model": "x"}}
    with pytest.raises(ValueError, match="holds another study") as refused:
        Store(uri).write_study(other)
    assert "model not set there, x here; outer.lr 0.7 there, 0.5 here; workers 4 there, 8 here; " in str(refused.value)
    assert not re.search(r"digits|ratios", str(refused.value).removeprefix(uri))
    assert Store(uri).read_study()["fingerprint"]["workers"] == 4


def test_a_users_own_folder_is_refused(uri):
    """Results are not poured among files that are none of ours."""
    folder = Store(uri).folder
    folder.make()
    folder.write("thesis.tex", b"\\documentclass{article}")
    with pytest.raises(ValueError, match=r"no study\.json but thesis\.tex; choose another --out"):
        Store(uri).write_study(STUDY)
    assert [e.base_name for e in folder.entries()] == ["thesis.tex"]


def test_a_broken_file_is_named_wherever_it_lies(uri):
    """An unreadable file is named and the rows beside it are read."""
    store = Store(uri)
    store.write_study(STUDY)
    with store.trial("t", 0) as trial:
        trial.runs([run_row()])
    store.folder.write("trials/cut-a0.parquet", store.folder.read("trials/t-a0.parquet")[:-100])
    with pytest.warns(CserWarning, match=r"trials/cut-a0\.parquet"):
        assert len(read_runs(uri)) == 1


def test_a_missing_bucket_is_an_error_with_its_path(s3):
    """A mistyped bucket is an OSError that says which object could not be written."""
    with pytest.raises(OSError, match=r"no-such-bucket/results/study\.json"):
        Store("s3://no-such-bucket/results").write_study(STUDY)


def test_a_store_travels_to_another_process(uri):
    """A store that was in use, on a disk or in a bucket, pickles and works on the other side."""
    store = Store(uri)
    store.write_study(STUDY)
    copy = pickle.loads(pickle.dumps(store))
    assert copy == store
    assert copy.read_study() == store.read_study()


def test_a_relative_path_keeps_its_meaning(tmp_path, monkeypatch):
    """A worker with another working directory writes to the same folder."""
    monkeypatch.chdir(tmp_path)
    store = Store("results")
    monkeypatch.chdir("/")
    store.write_study(STUDY)
    assert (tmp_path / "results" / "study.json").exists()


def test_the_study_file_is_strict_json(local):
    """Any JSON parser reads study.json: an infinity is the string "inf"."""

    def refuse(token):
        raise AssertionError(token)

    text = local.folder.read("study.json")
    assert json.loads(text, parse_constant=refuse)["fingerprint"]["ratios"] == [16, "inf"]


def test_the_same_study_goes_on(local):
    """Opening the folder again with the same settings keeps its rows; tuples, lists and 4.0 for 4 are no difference."""
    with local.trial("t", 0) as trial:
        trial.runs([run_row()])
    same = {"fingerprint": {**STUDY["fingerprint"], "workers": 4.0, "ratios": (16, math.inf), "model": None}}
    local.write_study({**same, "note": "again"})
    assert local.read_study()["note"] == "again"
    assert len(read_runs(local.uri)) == 1


def test_equal_fingerprints_are_the_same_study():
    """Nothing is raised for two fingerprints that differ in no setting."""
    check_same_study(STUDY["fingerprint"], json.loads(json.dumps(STUDY["fingerprint"]).replace("Infinity", '"inf"')))


def test_a_study_that_was_killed_at_its_birth_can_begin_again(tmp_path):
    """A folder with nothing but a half-written study.json counts as empty."""
    (tmp_path / ".tmp-0-study.json").write_bytes(b"{")
    Store(str(tmp_path)).write_study(STUDY)
    assert len(read_runs(str(tmp_path))) == 0


def test_a_study_needs_its_fingerprint(tmp_path):
    """A study that could not be told from another is refused."""
    with pytest.raises(ValueError, match="fingerprint"):
        Store(str(tmp_path)).write_study({"workers": 4})
