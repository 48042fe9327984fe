"""Whatever bytes a checkpoint from outside holds, reading it gives a value or an error of ours, and runs no code."""

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from cser_ray.store import checkpoint
from cser_ray.store.checkpoint import CheckpointStore, DamagedError, Manifest
from cser_ray.train.checkpoints import Checkpoints
from tests.outside import BOMB, NESTED, json_values, mutated_json, mutations, no_code, often, value_or
from tests.train.test_checkpoints import begin, go, stacked

TENSORS = {"x": torch.ones(1, 2, 3), "draws": torch.zeros(1, 2, 5, dtype=torch.uint8)}
FILE = checkpoint.encode(TENSORS, {"passes": 3, "extra": {"in_flight": []}})


@often
@given(data=mutations(FILE))
@example(data=BOMB)
@example(data=pickle.dumps(TENSORS))
@example(data=checkpoint.encode({}, {"state": 1})[:8] + b"{" + b"[" * 100)
def test_files_of_checkpoints(data: bytes) -> None:
    """safetensors with JSON inside."""
    value_or(DamagedError, lambda: checkpoint.decode(data))


@pytest.mark.parametrize("state", ["[" * 100_000, "3", "NaN", "{", ""])
def test_states_of_checkpoints(state: str) -> None:
    """What the header of a good file says may still be anything."""
    with no_code(), pytest.raises(DamagedError):
        checkpoint.decode(safetensors.torch.save(TENSORS, {"state": state}))


MANIFEST = {"version": 1, "step": 7, "fingerprint": {"workers": 4}, "files": {"common.safetensors": "00"}}


@often
@given(data=mutations(json.dumps(MANIFEST).encode()))
@example(data=NESTED)
def test_manifests(tmp_path: Path, data: bytes) -> None:
    """Any bytes."""
    path = tmp_path / "checkpoints/t/step-00000007/manifest.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    value_or(DamagedError, lambda: CheckpointStore(str(tmp_path), "t").manifest(7))


@often
@given(fingerprint=json_values, files=json_values)
def test_manifests_with_right_checksums(tmp_path: Path, fingerprint: Any, files: Any) -> None:
    """Whoever can write the folder can write a checksum."""
    store = CheckpointStore(str(tmp_path), "t")
    store.begin(7)
    try:
        store.commit(7, Manifest(fingerprint, files))
    except ValueError:  # JSON has no NaN
        return
    value_or(DamagedError, lambda: store.read(7, "common.safetensors", store.manifest(7)))


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A trial with a checkpoint, and the state of its one process."""
    folder = tmp_path_factory.mktemp("saved")
    stack, record = begin(stacked("csea"))
    go(stack, record, 3)
    Checkpoints(str(folder), "trial", 0).save(stack, record)
    store = CheckpointStore(str(folder), "trial")
    return folder, store.read(3, "rank-0.safetensors", store.manifest(3))[1]


@pytest.mark.parametrize("workers", [4, 2])
@settings(often, max_examples=20)
@given(data=st.data())
def test_checkpoints_with_right_checksums(
    saved: tuple[Path, dict[str, Any]], workers: int, data: st.DataObject
) -> None:
    """A state that fits no trial is our error, with the same number of workers and another."""
    folder, state = saved
    store = CheckpointStore(str(folder), "trial")
    manifest = store.manifest(3)
    tensors, _ = store.read(3, "rank-0.safetensors", manifest)
    changed = data.draw(mutated_json(state))
    if data.draw(st.booleans()) and tensors:
        name = data.draw(st.sampled_from(sorted(tensors)))
        tensors[name] = data.draw(st.sampled_from([torch.zeros(1), torch.zeros(2, 0, 1), torch.ones(2, 9, 3)]))
    (folder / "forged").mkdir(exist_ok=True)
    forged = CheckpointStore(str(folder / "forged"), "trial")
    forged.begin(3)
    try:
        digest = forged.write(3, "rank-0.safetensors", tensors, changed).hex()
    except ValueError:  # JSON has no NaN
        return
    common = (folder / "checkpoints/trial/step-00000003/common.safetensors").read_bytes()
    (folder / "forged/checkpoints/trial/step-00000003/common.safetensors").write_bytes(common)
    forged.commit(3, Manifest(manifest.fingerprint, manifest.files | {"rank-0.safetensors": digest}))
    stack, record = begin(stacked("csea", workers=workers))
    earlier = "" if workers == 4 else "trial"
    checkpoints = Checkpoints(forged.uri, "trial" if workers == 4 else "other", 0, earlier)
    value_or(ValueError, lambda: checkpoints.restore(stack, record))


@pytest.mark.parametrize(
    ("name", "value"),
    [("note", True), ("evaluation", "3"), ("wall_s", None), ("diverged_step", [True]), ("steps_before", 1.5)],
)
def test_a_record_of_other_kinds_is_refused(saved: tuple[Path, dict[str, Any]], name: str, value: object) -> None:
    """When it is loaded, not where the value is used."""
    _, record = begin(stacked("csea"))
    record.load_state(saved[1]["record"])
    with pytest.raises(TypeError, match=name):
        record.load_state(saved[1]["record"] | {name: value})
