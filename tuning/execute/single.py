"""One run by itself, as `cser-ray train` does it: a configuration from flags, trained here or on real workers."""

import hashlib
import os
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from typing import Any

from cser_ray.budget import ratio_of, structure_for
from cser_ray.compressors.text import check_kind, overlaps
from cser_ray.config import DEFAULTS, RunConfig, reads_of
from cser_ray.knobs import KNOBS, USUAL_KNOBS, Knobs, in_words, read_from
from cser_ray.methods import ALL_KNOBS, METHODS
from cser_ray.scale import ACCURACY, scale_of
from cser_ray.settings import declared
from cser_ray.store.checkpoint import CheckpointStore
from cser_ray.store.read import read_runs
from cser_ray.store.write import Store
from cser_ray.structure import Structure, number
from cser_ray.train.logistics import Logistics
from cser_ray.train.record import TrialIdentity
from tuning.study.defaults import with_task_defaults
from tuning.study.trials import Trial

METHOD, RATIO = "cser-pl", 256.0
"""What is trained where nobody says."""
FIRST = (
    *("task", "model", "data_dir", "coarse_labels", "method", "block_order", "ratio", "reset_interval", "reset_ratio"),
    *("gradient_ratio", "lr", "momentum", "beta2", "weight_decay", "outer_lr", "outer_momentum", "schedule"),
    *(
        "warmup_steps",
        "steps",
        "evaluations",
        "batch_size",
        "workers",
        "processes_per_worker",
        "seed",
        "repeat",
        "rung",
    ),
    "dtype",
)
"""The settings of a run in version 0.1, in their order then: by them a folder of that time names its runs."""


def single_config(settings: Mapping[str, Any]) -> RunConfig:
    """The configuration that the settings describe: a ratio, a whole structure, or a ratio with some of its knobs.

    Raises ValueError where they are off budget or name a knob that the method ignores.
    """
    knobs = {name: settings[name] for name in ALL_KNOBS if name in settings}
    method, ratio = settings.get("method", METHOD), settings.get("ratio")
    if ratio is None and knobs:
        structure = Structure(**knobs)
        ratio = ratio_of(method, structure)
    else:
        default = RATIO if METHODS[method].has_ratio else METHODS[method].formula(Structure())
        ratio = default if ratio is None else ratio
        structure = structure_for(method, ratio, **knobs)
    _check_read(method, settings)
    values = dict(METHODS[method].usual) | with_task_defaults(RunConfig, settings) | asdict(structure)
    values |= {"method": method, "ratio": ratio}
    if settings.get("compressor", Knobs.compressor) != Knobs.compressor:
        values["compressor"] = str(check_kind(method, settings["compressor"]))  # in one spelling
    if settings.get("overlap"):
        if not (settings.get("distributed") or settings.get("loop")):
            raise ValueError("--overlap is for real workers: add --distributed, or leave it out")
        if "overlap" not in METHODS[method].variants:
            raise ValueError(f"{method} sends nothing during the backward pass: leave --overlap out")
        text, inner = settings.get("compressor", Knobs.compressor), settings.get("inner", "nesterov")
        if not overlaps(method, text, inner):
            raise ValueError(
                f"{method} cannot send {text} around {inner} during the backward pass: leave --overlap out, or take grbs "
                "around nesterov or adamw"
            )
    return RunConfig(**values, rung="distributed" if settings.get("distributed") else "virtual")


def _check_read(method: str, settings: Mapping[str, Any]) -> None:
    """Raise ValueError for a knob beside the structure that the method ignores, unless it stands where it would anyway."""
    beta2 = settings.get("beta2", DEFAULTS["beta2"])
    if beta2 != DEFAULTS["beta2"] and "beta2" not in reads_of(method, settings.get("inner") or DEFAULTS["inner"]):
        raise ValueError(f"beta2 = {beta2:g} would be ignored by {method}, which has no AdamW inside: leave it out")
    for name in KNOBS:
        if (
            settings.get(name, getattr(USUAL_KNOBS, name)) != getattr(USUAL_KNOBS, name)
            and name not in METHODS[method].reads
        ):
            raise ValueError(f"{name} = {settings[name]} would be ignored by {method}: leave it out")


def run_single(settings: Mapping[str, Any], say: Callable[[str], None]) -> None:
    """Train it and `say` line by line how it goes; its rows are kept in `settings["out"]` where that is given."""
    config = single_config(settings)
    point = ", ".join(filter(None, (str(config.structure), in_words(read_from(config.method, config.knobs)))))
    asked = f" at R_C = {number(config.ratio)}" if METHODS[config.method].has_ratio else ""  # else see what was sent
    say(f"{config.method}{asked} ({point}), lr {config.lr:g}, n = {config.workers}")
    with tempfile.TemporaryDirectory(prefix="cser-ray-") as scratch:
        store = Store(settings.get("out") or os.path.join(scratch, "results"))
        store.write_study({"fingerprint": {"kind": "train"}})
        trial = Trial(_trial_id(config), "train", (config,))
        identity = TrialIdentity("train", trial.trial_id, store.next_attempt(trial.trial_id), "train")
        logistics, earlier = Logistics.of(settings), ""
        if "from_workers" in settings:
            earlier = _earlier(config, settings["from_workers"], store.uri)
            say(
                f"goes on where {settings['from_workers']} workers stopped: reset, then redistributed over {config.workers}"
            )
        if config.rung == "distributed":
            _distributed(trial, identity, store.uri, os.path.join(scratch, "ray"), logistics, earlier)
        else:
            _virtual(trial, identity, store, say, logistics, earlier)
        rows = read_runs(store.uri)
        row = rows[rows["run_id"] == trial.run_ids()[0]].iloc[0]
        scale = scale_of(row)
        own = row.test_acc_worker
        beside = (
            f" ({scale.told(own)} of a worker's own)" if own == own and own is not None else ""
        )  # a loop may not say
        say(
            f"{'diverged: ' if row.diverged else ''}test {scale.name} {scale.told(row.test_acc)} of the averaged model"
            f"{beside}, test loss {scale.loss_told(row.test_loss)}"
        )
        say(
            f"sent {row.bytes_sent / 1e6:.3f} MB a worker, {number(row.realised_ratio)} times less than dense fp32 "
            f"({number(row.realised_ratio_bf16)} times less than bf16), in {row.rounds:.4g} collectives a step; "
            f"every block {row.syncs_per_block:.3g} times; {row.wall_s:.1f} s"
        )
        if isinstance(row.note, str):
            say(row.note)
        if settings.get("out"):
            say(f"Results: {settings['out']}")


def _trial_id(config: RunConfig) -> str:
    """A readable prefix, then a digest of the whole configuration: different configurations have different ids."""
    knobs = f"H{config.reset_interval}-A{number(config.reset_ratio)}-B{number(config.gradient_ratio)}"
    name = f"{config.task}-{config.method}-{number(config.ratio)}-{knobs}".replace(":", ".")
    digest = hashlib.sha256(_digested(config).encode()).hexdigest()[:8]
    return f"{name}-{digest}".replace("+", "")  # 1e+08: no letter of a file's name


def _digested(config: RunConfig) -> str:
    """The configuration in the words of version 0.1, so that its runs go on, and then every other setting that is set."""
    younger = [
        each for each in declared(config) if each.name not in FIRST and getattr(config, each.name) != each.default
    ]
    told = [f"{name}={getattr(config, name)!r}" for name in (*FIRST, *(each.name for each in younger))]
    return f"RunConfig({', '.join(told)})"


def _earlier(config: RunConfig, workers: int, uri: str) -> str:
    """The trial that differs in its number of workers only; ValueError where it has no checkpoint."""
    trial_id = _trial_id(replace(config, workers=workers))
    if workers == config.workers or not CheckpointStore(uri, trial_id).steps():
        raise ValueError(
            f"{uri} has no checkpoint of this run with {workers} workers to go on from with {config.workers}: give the "
            "settings and the --out with which it was interrupted, or leave out --from-workers to begin anew"
        )
    return trial_id


def _virtual(
    trial: Trial,
    identity: TrialIdentity,
    store: Store,
    say: Callable[[str], None],
    logistics: Logistics,
    earlier: str,
) -> None:
    import torch

    from cser_ray.communication.communicator import Communicator
    from cser_ray.store.read import EpochRow, RunRow
    from cser_ray.tasks import make_task
    from cser_ray.train.checkpoints import Checkpoints
    from cser_ray.train.loop import train
    from cser_ray.train.models import KeptModels
    from cser_ray.virtual import VMAP_ON_CPU

    config = trial.runs[0]
    task = make_task(config.task, model=config.model, data_dir=config.data_dir, coarse_labels=config.coarse_labels)
    with store.trial(trial.trial_id, identity.attempt) as writer:

        def report(epochs: list[EpochRow], runs: list[RunRow]) -> None:
            writer.epoch(epochs)
            writer.runs(runs)
            e = epochs[0]
            scale = scale_of(vars(runs[0]))
            name = "acc" if scale == ACCURACY else scale.name
            say(f"step {e.step}  val loss {e.val_loss:.4f}  val {name} {scale.told(e.val_acc)}  lr {e.lr:.4g}")

        if sum(p.numel() for p in task.model().parameters()) <= VMAP_ON_CPU:
            torch.set_num_threads(1)  # threads cost more than they give where a step takes a millisecond
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        checkpoints = Checkpoints(store.uri, trial.trial_id, logistics.checkpoint_s, earlier)
        models = KeptModels(store.uri, logistics.keep_models)
        communicator = Communicator(trial.runs[0].workers, group=None)
        train(trial.runs, communicator, device, identity, report, checkpoints, models)


def _distributed(
    trial: Trial, identity: TrialIdentity, store: str, scratch: str, logistics: Logistics, earlier: str
) -> None:
    from cser_ray.train import cluster
    from cser_ray.train.trainer import fit_distributed

    cluster.connect()
    fit_distributed(trial.runs, identity, store, scratch, logistics, earlier)
