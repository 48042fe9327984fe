"""The averaged model of a study's run, as files that torch loads without this package."""

import io
import json
import warnings
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cser_ray.config import DEFAULTS, RunConfig
from cser_ray.errors import CserWarning
from cser_ray.scale import scale_of
from cser_ray.store.checkpoint import DamagedError
from cser_ray.store.folder import Folder
from cser_ray.store.models import SMALL, ModelStore, decode
from cser_ray.store.read import read_runs
from cser_ray.structure import number
from tuning.compare.selection import Chosen, read_chosen
from tuning.compare.text import paragraph
from tuning.take_home.best import find_best
from tuning.take_home.reproduce import recorded_config, settings_of_run, train_command

if TYPE_CHECKING:
    import pandas as pd

KINDS = (".safetensors", ".pt", ".pth")
"""How the name of a model's file may end."""


@dataclass(frozen=True)
class Model:
    """The averaged model of one run: a safetensors file, and what its header says of it."""

    data: bytes
    facts: dict[str, str]
    decision: tuple[str, ...] = ()
    """What to know before using it, where a comparison chose it."""

    def as_file(self, path: str) -> bytes:
        """The content of a file of the kind that its name asks for. Raises ValueError for another kind."""
        check_kind(path)
        if path.endswith(".safetensors"):
            return self.data
        import torch

        tensors, facts = decode(self.data)
        state = OrderedDict(tensors)
        state._metadata = {"cser_ray": facts}  # type: ignore[attr-defined]  # torch keeps versions there, and this with them
        file = io.BytesIO()
        torch.save(state, file)
        return file.getvalue()

    def report(self, paths: Iterable[str]) -> str:
        """What was taken home, and the lines that load it."""
        f = self.facts
        scale = scale_of(f | {"metric_maximise": f.get("metric_maximise") == "True"})
        ratio = number(float(f["ratio"]))
        dtype = json.loads(f.get("config") or "{}").get("dtype", DEFAULTS["dtype"])
        trained = "" if dtype == DEFAULTS["dtype"] else f" Trained in {dtype}, which leaves the tensors float32;"
        trained += " evaluated in float32." if trained else ""
        what = (
            f"{f['method']} at R_C = {ratio}, lr {float(f['lr']):g}, repeat {f['repeat']} ({f['run_id']}): "
            f"{f['model']} on {f['task']}, test {scale.name} "
            f"{scale.told(float(f['test_acc']))}, test loss {scale.loss_told(float(f['test_loss']))}.{trained}"
        )
        loads = [f"  state = {_loads(path)}" for path in paths]
        code = [*loads, f"  {f['build']}", "  module.load_state_dict(state); module.eval()"]
        return "\n\n".join([*map(paragraph, [*self.decision, what]), "\n".join(code)])


def check_kind(path: str) -> None:
    """Raise ValueError for a file that is no kind of model."""
    if not path.endswith(KINDS):
        raise ValueError(f"{path}: the file of a model ends in .safetensors, or in .pt or .pth for torch.load")


def find_model(
    results: str,
    ratio: float | None = None,
    method: str | None = None,
    select: str | None = None,
    run_id: str | None = None,
) -> Model:
    """The model of the run `run_id`, else of what `find_best` finds at a ratio, else of the folder's only finished run.

    `select`: choose by another rule than the study's. Of several repeats it is the first whose model was kept. Raises
    ValueError where there is no such run, and where its model is not there: with the commands that make it.
    """
    decision: tuple[str, ...] = ()
    if run_id is None and ratio is not None:
        best = find_best(read_chosen(results, select), ratio, method)
        wanted, config, decision = best.run_ids, best.config, best.decision
    else:
        row = _named(read_runs(results), run_id)
        wanted, config = (row["run_id"],), recorded_config(row["config_json"])
    store = ModelStore(results)
    for name in wanted:
        try:
            data = store.read(name)
        except DamagedError as error:
            warnings.warn(f"A damaged model is left out: {error}", CserWarning, stacklevel=2)
            continue
        if data is not None:
            return Model(data, decode(data)[1], decision)
    raise ValueError(f"{results} has no model of {wanted[0]}. {_again(config)}")


def write_model(model: Model, path: str) -> None:
    """Write it to a path or URI, whole or not at all. Raises OSError where that fails."""
    folder, _, name = path.rpartition("/")
    Folder(folder or ("/" if path.startswith("/") else ".")).write(name, model.as_file(path))


def prune_models(results: str, chosen: Chosen) -> None:
    """Remove large models that are not chosen any more; small trials keep all of theirs, real ones theirs too."""
    store = ModelStore(results)
    sizes = store.sizes()
    wanted = {run["run_id"] for choice in chosen.choices.values() for run in choice.runs}
    trials: dict[str, list[str]] = {}
    for run in chosen.rows:
        if run["rung"] == "virtual":
            trials.setdefault(run["trial_id"], []).append(run["run_id"])
    for trial in trials.values():
        kept = [run_id for run_id in trial if run_id in sizes]
        if kept and sizes[kept[0]] * len(trial) > SMALL:
            for run_id in set(kept) - wanted:
                store.remove(run_id)


def _named(runs: "pd.DataFrame", run_id: str | None) -> "pd.Series":
    """The finished run of that name, or the only one that there is."""
    finished = runs[(runs["status"] == "FINISHED") & ~runs["diverged"]]
    if run_id is not None:
        found = finished[finished["run_id"] == run_id]
        if found.empty:
            raise ValueError(f"there is no run {run_id!r} that finished and converged; see the column run_id")
        return found.iloc[0]
    if len(finished) != 1:
        raise ValueError(f"there are {len(finished)} finished runs: say which, with --ratio and --method or with --run")
    return finished.iloc[0]


def _again(config: RunConfig) -> str:
    real = " --distributed" if config.rung == "distributed" else ""
    command = "\n".join("  " + line for line in train_command(settings_of_run(config)).splitlines())
    return (
        "It was trained with --keep-models none, by an earlier version, or gave way to a better one of its size. These "
        f"commands make it:\n{command}{real} --out again\n  cser-ray export again -o model.safetensors"
    )


def _loads(path: str) -> str:
    if path.endswith(".safetensors"):
        return f"safetensors.torch.load_file({path!r})"
    return f"torch.load({path!r}, weights_only=True)"
