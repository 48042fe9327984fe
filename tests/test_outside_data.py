"""Whatever bytes a file from outside holds, its reader gives a value or an error that names the file, and runs no code."""

import json
import pickle
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import click
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from cser_ray import checkpoint, model_store
from cser_ray.checkpoint import CheckpointStore, DamagedError, Manifest
from cser_ray.cli import tune
from cser_ray.errors import CserWarning
from cser_ray.options import settings_of
from cser_ray.results import EpochRow, RunRow, decode, read_history, read_runs, read_study
from cser_ray.store import Store, encode
from cser_ray.train.checkpoints import Checkpoints
from tests.store_rows import STUDY, epoch_row, run_row
from tests.train.test_checkpoints import begin, go, stacked
from tuning.calibration import read_links
from tuning.reproduce import recorded_config

RUNS_CODE = {"pickle.find_class", "os.system", "subprocess.Popen", "os.exec", "os.posix_spawn", "shutil.rmtree"}
"""Audit events of what an attacker would have a reader do."""
BOMB = b"cos\nsystem\n(S'true'\ntR."
NESTED = b"[" * 200_000
watched: list[str] | None = None


def watch(event: str, arguments: Any) -> None:
    """Audit hooks stay for ever, so this one listens only when asked."""
    if watched is not None and event in RUNS_CODE:
        watched.append(event)


sys.addaudithook(watch)


@contextmanager
def no_code() -> Iterator[None]:
    """Inside, nothing may be run that only a file can have asked for."""
    global watched
    watched = []
    try:
        yield
    finally:
        seen, watched = watched, None
    assert seen == []


def test_the_watch_sees_code() -> None:
    """A pickle that runs a command is noticed."""
    with pytest.raises(AssertionError, match=r"pickle\.find_class"), no_code():
        pickle.loads(BOMB)


@st.composite
def mutations(draw: st.DrawFn, data: bytes) -> bytes:
    """The bytes with some of them changed, cut out, doubled or replaced; or others altogether."""
    if draw(st.integers(0, 9)) == 0:
        return draw(st.binary(max_size=200))
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, max(len(data) - 1, 0)))
        stop = min(len(data), start + draw(st.one_of(st.integers(0, 40), st.just(len(data)))))
        put = draw(st.one_of(st.binary(max_size=20), st.just(b""), st.just(data[start:stop] * 2)))
        data = data[:start] + put + data[stop:]
    return data


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


def mutated_json(value: Any) -> st.SearchStrategy[Any]:
    """The value with one of its leaves, or a branch, replaced by anything JSON can say."""

    @st.composite
    def mutate(draw: st.DrawFn) -> Any:
        copy = json.loads(json.dumps(value))
        at = copy
        while True:
            keys = list(at) if isinstance(at, dict) else list(range(len(at)))
            key = draw(st.sampled_from(keys))
            if isinstance(at[key], dict | list) and at[key] and draw(st.booleans()):
                at = at[key]
                continue
            if isinstance(at, dict) and draw(st.integers(0, 3)) == 0:
                del at[key]
            else:
                at[key] = draw(json_values)
            return copy

    return mutate()


often = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def value_or(errors: type[Exception] | tuple[type[Exception], ...], read: Callable[[], object]) -> None:
    """Reads without code, and with no other error; a file that is left out is named in a warning of ours."""
    with no_code(), warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.simplefilter("ignore", CserWarning)
        with suppress(*errors if isinstance(errors, tuple) else (errors,)):
            read()


RUNS = encode([vars(run_row()), vars(run_row("q", status="FINISHED", val_loss=0.5))], RunRow)
HISTORY = encode([vars(epoch_row(k)) for k in range(3)], EpochRow)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A results folder."""
    store = Store(str(tmp_path_factory.mktemp("outside") / "results"))
    store.write_study(STUDY)
    return store


@settings(often, max_examples=30)
@given(data=mutations(RUNS))
@example(data=BOMB)
def test_tables_of_runs(folder: Store, data: bytes) -> None:
    """Parquet that somebody else wrote."""
    Path(folder.uri, "trials/t-a0.parquet").write_bytes(data)
    value_or(ValueError, lambda: read_runs(folder.uri))
    value_or(ValueError, lambda: folder.trial("t", 0).runs([run_row()]))


@pytest.mark.parametrize(
    ("column", "value"), [("run_id", pa.array([b"\xff\xfe"]).view(pa.string())), ("started_at", pa.array([2**62]))]
)
def test_values_that_python_does_not_have(folder: Store, column: str, value: pa.Array) -> None:
    """Text that is none, a time beyond the calendar: the file is left out with a warning, not the first use an error."""
    table = decode(encode([vars(run_row())], RunRow), RunRow, "table")
    at = table.schema.get_field_index(column)
    table = table.set_column(at, table.schema.field(at), value.cast(table.schema.field(at).type))
    pq.write_table(table, Path(folder.uri, "trials/t-a0.parquet"))
    with pytest.warns(CserWarning, match=r"t-a0\.parquet: .*a column does not hold what it should"):
        assert read_runs(folder.uri).empty


@often
@given(data=mutations(HISTORY))
def test_tables_of_evaluations(folder: Store, data: bytes) -> None:
    """The same of learning curves."""
    Path(folder.uri, "history/t-a0.parquet").write_bytes(data)
    value_or(ValueError, lambda: read_history(folder.uri))


STUDY_JSON = json.dumps({"fingerprint": {"task": "digits", "ratios": [16, "inf"]}, "schema_version": 1}).encode()


@often
@given(data=mutations(STUDY_JSON) | mutated_json(json.loads(STUDY_JSON)).map(lambda v: json.dumps(v).encode()))
@example(data=NESTED)
@example(data=b'{"schema_version": [1]}')
@example(data=b'{"schema_version": 1e999}')
@example(data=b'{"schema_version": "one"}')
@example(data=b'{"fingerprint": 3}')
def test_a_study(tmp_path: Path, data: bytes) -> None:
    """study.json, read alone, and to see whose folder it is."""
    store = Store(str(tmp_path))
    (tmp_path / "study.json").write_bytes(data)
    value_or(ValueError, lambda: read_study(store.uri))
    value_or(ValueError, lambda: store.check_study(STUDY["fingerprint"]))


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
    import safetensors.torch

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
    trial, record = begin(stacked("csea"))
    go(trial, record, 3)
    Checkpoints(str(folder), "trial", 0).save(trial, record)
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
    trial, record = begin(stacked("csea", workers=workers))
    earlier = "" if workers == 4 else "trial"
    checkpoints = Checkpoints(forged.uri, "trial" if workers == 4 else "other", 0, earlier)
    value_or(ValueError, lambda: checkpoints.restore(trial, record))


MODEL = model_store.encode({"weight": torch.ones(2, 3)}, {"run_id": "r"})


@often
@given(data=mutations(MODEL))
@example(data=BOMB)
def test_models(data: bytes) -> None:
    """Averaged models."""
    value_or(DamagedError, lambda: model_store.decode(data))


YAML = b"task: digits\nmethods: [sgd, cser]\nratios: [16, 64]\nlrs: [0.1]\nblock-order: cyclic\nout: results/x\n"
LAUGHS = b"lrs: [&a [1,1,1,1,1,1,1,1,1]" + b"".join(
    b", &%c [%s]" % (c + 1, b",".join([b"*%c" % c] * 9)) for c in range(ord("a"), ord("k"))
)
CALLS = [
    b"task: !!python/object/apply:os.system ['true']",
    b"lrs: !!python/name:os.system",
    b"task: !!python/module:os",
]


@often
@given(data=mutations(YAML))
@example(data=NESTED)
@example(data=LAUGHS + b"]")
@example(data=CALLS[0])
@example(data=CALLS[1])
@example(data=CALLS[2])
@example(data=b"lrs: 2020-13-45")
@example(data=b"? [a, b]\n: 1\n? {a: b}\n: 2")
@example(data=b"\xff\xfe\x00")
@example(data=b"steps: 99999999999999999999999999")
def test_settings(tmp_path: Path, data: bytes) -> None:
    """A study.yaml."""
    path = tmp_path / "study.yaml"
    path.write_bytes(data)
    context = click.Context(tune)
    given = {param.name: param.get_default(context) for param in tune.params} | {"config": str(path)}
    value_or((ValueError, click.UsageError), lambda: settings_of(context, given))


@pytest.mark.parametrize("call", CALLS)
def test_yaml_that_asks_for_code_is_refused(tmp_path: Path, call: bytes) -> None:
    """With the name of the file."""
    path = tmp_path / "study.yaml"
    path.write_bytes(call)
    with no_code(), pytest.raises(ValueError, match=r"study\.yaml is not YAML"):
        settings_of(click.Context(tune), {"config": str(path)})


LINKS = Path(__file__).parent.parent / "benchmarks/results/links_cpu.csv"


@often
@given(data=st.data())
def test_tables_of_links(tmp_path: Path, data: st.DataObject) -> None:
    """What `cser-ray plan --links` reads."""
    path = tmp_path / "links.csv"
    lines = LINKS.read_bytes().splitlines(keepends=True)[:4]
    path.write_bytes(data.draw(mutations(b"".join(lines))))
    value_or(ValueError, lambda: read_links(str(path)))


@often
@given(
    text=mutations(b'{"task": "digits", "method": "cser", "ratio": 16, "lr": 0.1}').map(lambda b: b.decode("latin1"))
)
@example(text="[" * 100_000)
def test_configurations_in_rows(text: str) -> None:
    """What `best` and `export` make commands of."""
    value_or(ValueError, lambda: recorded_config(text))
