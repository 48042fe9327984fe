"""Whatever bytes a file from outside holds, its reader gives a value or an error that names the file, and runs no code."""

import json
import pickle
from pathlib import Path

import click
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from cser_ray.commands.cli import tune
from cser_ray.commands.options import settings_of
from cser_ray.errors import CserWarning
from cser_ray.store import models as model_store
from cser_ray.store.checkpoint import DamagedError
from cser_ray.store.read import EpochRow, RunRow, decode, read_history, read_runs, read_study
from cser_ray.store.write import Store, encode
from tests.outside import BOMB, NESTED, mutated_json, mutations, no_code, often, value_or
from tests.store_rows import STUDY, epoch_row, run_row
from tuning.advise.calibration import read_links
from tuning.take_home.reproduce import recorded_config


def test_the_watch_sees_code() -> None:
    """A pickle that runs a command is noticed."""
    with pytest.raises(AssertionError, match=r"pickle\.find_class"), no_code():
        pickle.loads(BOMB)


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
