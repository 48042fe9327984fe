"""What a row of the results store means: the two row types, with the unit and meaning of every column.

The field names are Tune's keys, the columns of the Parquet files and the axes of the dashboard: one vocabulary, written
down once. The settings of a run are columns as `cser_ray.config` declares them. The Arrow schema follows from the
annotations. Importing costs no pyarrow: a help text stays instant.
"""

from dataclasses import Field, dataclass, field, fields, make_dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, get_args

from cser_ray.config import RUNGS, RunConfig
from cser_ray.settings import declared

if TYPE_CHECKING:
    import pyarrow as pa

SCHEMA_VERSION = 1
STATUSES = ("PENDING", "RUNNING", "FINISHED", "STOPPED", "ERROR")


def col(unit: str, doc: str, asked: bool = False, **default: Any) -> Any:
    """A field that carries its unit and meaning, so that docs and dashboard print them instead of repeating them.

    `asked`: it says what was run, as the settings do, and not what came of it.
    """
    return field(metadata={"unit": unit, "doc": doc, "asked": asked}, **default)


def opt(unit: str, doc: str, asked: bool = False) -> Any:
    """A field that may be null: not measured, or meaningless for this method."""
    return col(unit, doc, asked, default=None)


def _of_settings() -> list[tuple[str, Any, Any]]:
    """A column for each setting of a run: null where the method does not read it, or where it is an empty name."""
    found = []
    for each in declared(RunConfig):
        s = each.setting
        if s.column:
            nullable = s.by_method or each.default == ""
            doc = s.help.rstrip(".")
            made = opt(s.unit, doc, True) if nullable else col(s.unit, doc, True, default=each.default)
            found.append((each.name, each.kind | None if nullable else each.kind, made))
    return found


if TYPE_CHECKING:

    class SettingColumns:
        """The settings of a run, as columns."""

        def __init__(self, **columns: Any) -> None: ...

        def __getattr__(self, name: str) -> Any: ...

else:
    SettingColumns = make_dataclass("SettingColumns", _of_settings(), frozen=True, kw_only=True)


@dataclass(frozen=True, kw_only=True)
class RunRow(SettingColumns):
    """One run: a trial at one learning rate and repeat. A diverged loss is NaN with `diverged`; None: not measured.

    Beside the columns below it has one for each setting of `RunConfig`.

    Raises ValueError for an unknown status or rung, a time without a zone, a missing value, or a fraction of a count.
    """

    schema_version: int = col("1", "version of this table's columns", default=SCHEMA_VERSION)
    study: str = col("text", "study the run belongs to")
    trial_id: str = col("text", "trial: one method with one structure")
    attempt: int = col("1", "counts starts of the trial, and ends that the study wrote down for it; names the file")
    run_id: str = col("text", "run, unique in the study")
    stage: str = col(
        "text",
        "what asked for the run: rung, screen, repeat, extend, confirm or real of a study; train for a single run",
        asked=True,
    )
    task_hash: str | None = opt("text", "hash of the data; runs of different hashes are not compared")
    share: float | None = opt("1", "part of the budget spent on resets", asked=True)
    steps_done: int = col("steps", "steps taken so far", default=0)
    processes: int = col("processes", "processes that hold the workers")
    n_params: int | None = opt("parameters", "d: parameters of the model", asked=True)
    device: str | None = opt("text", "what computed: cpu or the accelerator's name")
    backend: str | None = opt("text", "what moved the bytes: nccl, gloo, or in-process")
    status: str = col("text", "PENDING, RUNNING, FINISHED, STOPPED (early) or ERROR")
    diverged: bool = col(
        "flag", "non-finite, or a final training loss above 1.3 × the constant predictor's", default=False
    )
    diverged_step: int | None = opt("steps", "step at which divergence was noticed")
    error: str | None = opt("text", "what failed, when status is ERROR")
    note: str | None = opt("text", "what happened on the way, such as a change of the number of workers")
    epochs: float | None = opt("epochs", "passes over the training data so far")
    samples: int | None = opt("examples", "of a loop: samples that a worker has trained on, mean over workers")
    evaluations_done: int | None = opt("1", "of a loop: evaluations reported so far")
    evaluated_at: str | None = opt("text", "of a loop: the steps after which it reported them")
    rate_first: float | None = opt("1", "of a loop: learning rate of the first step as a share of lr")
    rate_last: float | None = opt("1", "of a loop: that of the last step so far")
    rate_mean: float | None = opt("1", "of a loop: mean of that over the steps so far")
    rates_digest: str | None = opt("text", "of a loop: tells sequences of such rates apart")
    start_digest: str | None = opt("text", "of a loop: tells initial models and first batches apart")
    metrics: str | None = opt("JSON", "of a loop: further metrics of the averaged model at the last evaluation")
    metric: str | None = opt(
        "text",
        "what the columns *_acc* hold; null in older rows, and then accuracy in %, where more is better",
        asked=True,
    )
    metric_unit: str | None = opt("text", "unit of the metric, if it has one", asked=True)
    metric_maximise: bool | None = opt("flag", "whether more of the metric is better", asked=True)
    loss_unit: str | None = opt("text", "unit of the columns *_loss*, if they have one", asked=True)
    train_loss: float | None = opt("nats", "training loss at the last evaluation")
    val_loss: float | None = opt("nats", "validation loss of the averaged model")
    val_acc: float | None = opt("%", "validation accuracy, or the task's metric, of the averaged model")
    test_loss: float | None = opt(
        "nats", "test loss of the averaged model, after the last step; no choice is made by it"
    )
    test_acc: float | None = opt("%", "test accuracy of the averaged model")
    val_acc_worker: float | None = opt("%", "validation accuracy of a worker's own model, mean over workers")
    test_acc_worker: float | None = opt("%", "test accuracy of a worker's own model, mean over workers")
    val_loss_worker: float | None = opt("nats", "validation loss of a worker's own model, mean over workers")
    test_loss_worker: float | None = opt("nats", "test loss of a worker's own model, mean over workers")
    val_acc_ensemble: float | None = opt("%", "validation accuracy of the ensemble of the workers' models")
    test_acc_ensemble: float | None = opt("%", "test accuracy of the ensemble of the workers' models")
    val_loss_ensemble: float | None = opt("nats", "validation loss of the ensemble: of the mean of their probabilities")
    test_loss_ensemble: float | None = opt("nats", "test loss of the ensemble")
    consensus_distance: float | None = opt("1", "(1/n) Σ ‖x_i − x̄‖² / ‖x̄‖²")
    error_norm: float | None = opt(
        "1", "√(1/n Σ ‖e_i‖²) of what waits beside the models for later messages; null where none is kept"
    )
    bytes_sent: int | None = opt("bytes", "sent by one worker and counted in R_C")
    eval_bytes: int | None = opt(
        "bytes", "sent by one worker outside R_C: evaluation, seed checks, statistics, final average"
    )
    host_bytes: int | None = opt("bytes", "sent by one process to others of its own worker, inside a host")
    dense_bytes: int | None = opt("bytes", "what dense fp32 ring all-reduce every step would have sent per worker")
    realised_ratio: float | None = opt("×", "R_C by the ledger, over whole reset intervals; in float64 half")
    realised_ratio_bf16: float | None = opt("×", "the same against dense bf16: half of it")
    rounds: float | None = opt("1/step", "collectives a step")
    syncs_per_block: float | None = opt("1", "how often the average block was synchronised in the run")
    collectives: int | None = opt("1", "collectives of the run, evaluation apart")
    theorem1: float | None = opt(
        "steps²", "the paper's error term, ((2 R_C1 − 1) H)² (1 − 1/R_C2): shown, never used to choose"
    )
    wall_s: float | None = opt("s", "time of the training loop by the worker's own clock")
    compute_s: float | None = opt("s", "part of it spent computing")
    comm_s: float | None = opt("s", "part of it spent in communication, exposed or not")
    step_ms: float | None = opt("ms", "time of a step of real workers: median of a loop's, mean of a task's")
    started_at: datetime | None = opt("UTC", "when the run began")  # noqa: RUF009 - a field by another name
    heartbeat_at: datetime | None = opt("UTC", "when the run was last heard of")  # noqa: RUF009
    ended_at: datetime | None = opt("UTC", "when the run ended")  # noqa: RUF009
    node: str | None = opt("text", "host of rank 0")
    python_version: str | None = opt("text", "Python that ran it")
    torch_version: str | None = opt("text", "torch that ran it")
    ray_version: str | None = opt("text", "Ray that ran it; null without Ray")
    git_sha: str | None = opt("text", "commit of this package, where it is a checkout")
    config_json: str | None = opt("JSON", "the whole configuration of the run")

    def __post_init__(self) -> None:
        _check(self)


@dataclass(frozen=True, kw_only=True)
class EpochRow:
    """One evaluation of one run, the row behind a learning curve. Raises ValueError as RunRow does."""

    study: str = col("text", "study the run belongs to")
    trial_id: str = col("text", "trial: one method with one structure")
    run_id: str = col("text", "run, unique in the study")
    attempt: int = col("1", "counts starts of the trial, and ends that the study wrote down for it; names the file")
    rung: str = col("text", "how the run was carried out: virtual or distributed")
    evaluation: int = col("1", "count of evaluations before this one")
    step: int = col("steps", "steps taken")
    epoch: float = col("epochs", "passes over the training data")
    wall_s: float | None = opt("s", "since the training loop began, by the worker's own clock")
    lr: float | None = opt("1", "learning rate at this step")
    train_loss: float | None = opt("nats", "training loss at this evaluation")
    val_loss: float | None = opt("nats", "validation loss of the averaged model")
    val_acc: float | None = opt("%", "validation accuracy, or the task's metric, of the averaged model")
    val_acc_worker: float | None = opt("%", "validation accuracy of worker 0's own model; last row: mean over workers")
    consensus_distance: float | None = opt("1", "(1/n) Σ ‖x_i − x̄‖² / ‖x̄‖²")
    error_norm: float | None = opt(
        "1", "√(1/n Σ ‖e_i‖²) of what waits beside the models for later messages; null where none is kept"
    )
    bytes_sent: int | None = opt("bytes", "sent by one worker so far and counted in R_C")
    eval_bytes: int | None = opt("bytes", "sent by one worker so far outside R_C")
    rounds: float | None = opt("1/step", "collectives a step so far")
    compute_s: float | None = opt("s", "spent computing so far")
    comm_s: float | None = opt("s", "spent in communication so far")
    metrics: str | None = opt("JSON", "of a loop: further metrics of the averaged model")

    def __post_init__(self) -> None:
        _check(self)


Row = RunRow | EpochRow


@dataclass(frozen=True)
class Column:
    """What a reader should know of a column; `kind` is the Python type of its values."""

    name: str
    kind: type
    unit: str
    doc: str
    nullable: bool
    asked: bool
    """Whether it says what was run, and not what came of it."""


def columns(row_type: type[Row]) -> tuple[Column, ...]:
    """The columns of a table, in order: names, types, units and meanings."""
    return _COLUMNS[row_type]


def schema(row_type: type[Row]) -> "pa.Schema":
    """The Arrow schema of a table, from the annotations: explicit, so that a file of nulls reads like any other."""
    import pyarrow as pa

    types = {
        int: pa.int64(),
        float: pa.float64(),
        str: pa.string(),
        bool: pa.bool_(),
        datetime: pa.timestamp("us", "UTC"),
    }
    metadata = {"schema_version": str(SCHEMA_VERSION)}
    # a setting may be younger than a row that is written again
    return pa.schema([pa.field(c.name, types[c.kind], c.nullable or c.asked) for c in columns(row_type)], metadata)


def _column(f: "Field[Any]") -> Column:
    kinds = [k for k in get_args(f.type) if k is not type(None)] or [f.type]
    return Column(
        f.name, kinds[0], f.metadata["unit"], f.metadata["doc"], len(get_args(f.type)) > 1, f.metadata["asked"]
    )


def _check(row: Row) -> None:
    name = type(row).__name__
    for c in columns(type(row)):
        value = getattr(row, c.name)
        if value is None:
            if not c.nullable:
                raise ValueError(f"{name}.{c.name} is None, but every row has one: give {c.doc}")
        elif c.kind is int and (isinstance(value, str) or value % 1 != 0):  # Arrow would cut 3.7 to 3 without a word
            raise ValueError(
                f"{name}.{c.name} = {value} is not a whole number of {c.unit}: round it where it is measured"
            )
        elif c.kind is datetime and value.tzinfo is None:
            raise ValueError(f"{name}.{c.name} = {value} has no time zone: use datetime.now(UTC)")
    if row.rung not in RUNGS:
        raise ValueError(f"{name}.rung = {row.rung!r} is not one of {', '.join(RUNGS)}")
    if isinstance(row, RunRow) and row.status not in STATUSES:
        raise ValueError(f"{name}.status = {row.status!r} is not one of {', '.join(STATUSES)}")


_COLUMNS = {row_type: tuple(_column(f) for f in fields(row_type)) for row_type in (RunRow, EpochRow)}
