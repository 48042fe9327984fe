"""Every method that this package has, tuned alike, against local SGD and against silence: the tables of docs/methods.md.

    python benchmarks/family.py run mnist1d pytext --out results/family    # two studies; on a GPU, minutes each
    python benchmarks/family.py rows results/family --out benchmarks/results/family.csv
    python benchmarks/family.py table benchmarks/results/family.csv        # writes the tables into docs/methods.md

A study searches each method with the same number of runs at each ratio, chooses by validation loss, and reports by seeds
that chose nothing. The rows are those runs' test results. A method is measured against plain local averaging around its
own local step (`local-sgd`, `local-adamw`), and against the best that its workers reach without a word, paired by seed.
"""

import argparse
import csv
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean, stdev
from textwrap import fill
from typing import Any, Literal

from scipy.special import stdtrit

from cser_ray.config import check_inner
from cser_ray.knobs import in_words, read_from
from cser_ray.methods import METHODS
from cser_ray.structure import number
from tuning.compare.fairness import holm, paired_p
from tuning.compare.selection import Choice, Chosen, read_chosen
from tuning.execute.run import run_study
from tuning.study.study import Study

RATIOS = (16.0, 64.0, 256.0)
SEEDS = 8
"""Fresh ones, by which the chosen configurations are reported."""
COLUMNS = ("study", "method", "ratio", "sent_ratio", "configuration", "repeat", "diverged", "test_loss", "test_acc",
           "floor_loss")  # fmt: skip
BEGIN, END = "<!-- benchmarks/family.py: from here -->", "<!-- benchmarks/family.py: to here -->"
DOCUMENT = Path(__file__).parent.parent / "docs/methods.md"
LEVEL = 0.05
WIDTH = 120
BESIDE = (
    "Without a ratio to ask for, at what their messages come to. ▲ and ▼ are against local averaging at the largest ratio of "
    "the table that is not above theirs, so that it has at least as many bytes; adjusted together."
)


def studies() -> dict[str, Study]:
    """The studies by name: a convolution-like task around SGD, and text around AdamW."""
    common: dict[str, Any] = {
        "workers": 8,
        "ratios": RATIOS,
        "repeats": 3,
        "confirm": SEEDS,
        "distributed": 0,
        "compressors": ("grbs", "top-k/4096:int8"),
    }
    return {
        "mnist1d": Study(
            task="mnist1d",
            methods=_able("nesterov"),
            lrs=tuple(0.001 * 2**k for k in range(11)),
            trials=6,
            **common,
        ),
        "pytext": Study(
            task="pytext",
            inner="adamw",
            methods=_able("adamw"),
            lrs=tuple(0.0005 * 2**k for k in range(5)),
            trials=3,
            steps=768,
            **common,
        ),
    }


def _able(inner: str) -> tuple[str, ...]:
    """The methods that can have this local step, or have it anyway; around AdamW, without the names that only add it."""
    found = []
    for name in METHODS.builtin:
        try:
            check_inner(name, inner)
        except ValueError:
            continue
        if inner == "nesterov" or not name.endswith("-adamw"):
            found.append(name)
    return tuple(found)


@dataclass
class Cell:
    """The seeds of one method at one ratio."""

    method: str
    ratio: float
    sent_ratio: float
    configuration: str
    losses: dict[int, float] = field(default_factory=dict)
    """By repeat; infinite where it diverged."""
    accuracies: dict[int, float] = field(default_factory=dict)
    floors: dict[int, float] = field(default_factory=dict)
    """Of a silent method: the least loss of its three lines."""

    @property
    def converged(self) -> list[float]:
        """Losses of the seeds that converged."""
        return [loss for loss in self.losses.values() if math.isfinite(loss)]


Standing = Literal["better", "alike", "worse"]
Cells = Mapping[tuple[str, float], Cell]


def rows_of(name: str, chosen: Chosen) -> Iterable[list[Any]]:
    """A row a seed of each chosen configuration."""
    for choice in chosen.choices.values():
        for run in choice.runs:
            lines = [run.get(f"test_loss{model}") for model in ("", "_worker", "_ensemble")]
            floor = min((line for line in lines if line is not None), default=math.nan)
            yield [
                name, choice.method, f"{choice.ratio:g}", f"{run['realised_ratio']:.5g}", _configuration(choice),
                run["repeat"], int(run["diverged"]), f"{run['test_loss'] or math.nan:.6g}",
                f"{run['test_acc'] or math.nan:.5g}", f"{floor if METHODS[choice.method].silent else math.nan:.6g}",
            ]  # fmt: skip


def _configuration(choice: Choice) -> str:
    c = choice.configuration
    words = [str(c.structure)] if c.structure is not None else []
    if knobs := in_words(read_from(choice.method, c.knobs)):
        words.append(knobs)
    return ", ".join([*words, f"lr {c.lr:g}"])


def read(path: str) -> dict[str, dict[tuple[str, float], Cell]]:
    """Study -> (method, ratio) -> cell, of what `rows` wrote."""
    found: dict[str, dict[tuple[str, float], Cell]] = {}
    with open(path, newline="") as file:
        for row in csv.DictReader(file):
            cells = found.setdefault(row["study"], {})
            key = row["method"], float(row["ratio"])
            cell = cells.setdefault(key, Cell(*key, float(row["sent_ratio"]), row["configuration"]))
            repeat, diverged = int(row["repeat"]), row["diverged"] == "1"
            cell.losses[repeat] = math.inf if diverged else float(row["test_loss"])
            cell.accuracies[repeat] = math.nan if diverged else float(row["test_acc"])
            cell.floors[repeat] = float(row["floor_loss"])
    return found


def two_sided(ours: Mapping[int, float], theirs: Mapping[int, float]) -> tuple[float, float]:
    """Mean difference of losses by seed, and the two-sided p of `paired_p`; p is 1 with fewer than 3 common seeds."""
    common = [k for k in ours.keys() & theirs.keys() if math.isfinite(ours[k]) and math.isfinite(theirs[k])]
    one, other = ({k: losses[k] for k in common} for losses in (ours, theirs))
    above, below = paired_p(one, other), paired_p(other, one)
    if above is None or below is None:
        return math.nan, 1.0
    return mean(one[k] - other[k] for k in common), min(1.0, 2 * min(above, below))


def standings(cells: Mapping[str, Cell], against: Mapping[str, Mapping[int, float]]) -> dict[str, Standing]:
    """Each method against its own opponent's losses, all tests of a column adjusted together (Holm).

    One that diverged with more seeds than its opponent is worse, whatever the rest of them reached.
    """
    tests = {name: two_sided(cell.losses, against[name]) for name, cell in cells.items() if name in against}
    adjusted = holm({name: p for name, (_, p) in tests.items()})
    found: dict[str, Standing] = {}
    for name, (difference, _) in tests.items():
        lost = sum(map(math.isinf, cells[name].losses.values())) > sum(map(math.isinf, against[name].values()))
        told = adjusted[name] <= LEVEL and not math.isnan(difference)
        found[name] = "worse" if lost or (told and difference > 0) else "better" if told else "alike"
    return found


def table(name: str, cells: Cells) -> str:
    """One study: a row a method, a column a ratio, and in sentences what beats what."""
    study = studies()[name]
    inner_of = {
        method: METHODS[method].inner if METHODS[method].inner != "nesterov" else study.inner for method, _ in cells
    }
    local, silent = _opponents(cells, inner_of)
    methods = list(dict.fromkeys(method for method, _ in cells if METHODS[method].has_ratio))
    columns = {ratio: {m: cells[m, ratio] for m in methods if (m, ratio) in cells} for ratio in study.ratios}
    beside = {r: standings(at, _losses(at, local, inner_of, r)) for r, at in columns.items()}
    above = {
        r: standings(at, {m: silent[inner_of[m]] for m in at if inner_of[m] in silent}) for r, at in columns.items()
    }
    lines = [f"### On {name}", "", wrapped(_conditions(study, cells)), ""]
    lines += [
        "| method | " + " | ".join(f"R_C {number(r)}" for r in study.ratios) + " |",
        "|---|" + "---|" * len(study.ratios),
    ]
    for method in methods:
        entries = [
            _entry(columns[r][method], beside[r].get(method), above[r].get(method)) if method in columns[r] else "–"
            for r in study.ratios
        ]
        lines.append(f"| `{method}` | " + " | ".join(entries) + " |")
    lines += [
        "",
        wrapped(BESIDE),
        "",
        "| method | R_C | test loss |",
        "|---|---|---|",
    ]
    fixed = {m: cell for (m, _), cell in cells.items() if not METHODS[m].has_ratio}
    against = {
        m: max((r for r in study.ratios if r <= cell.sent_ratio < math.inf), default=None) for m, cell in fixed.items()
    }
    compared = {
        m: cells[local[inner_of[m]], ratio].losses for m, ratio in against.items() if ratio and inner_of[m] in local
    }
    found = standings(fixed, compared)
    for method, cell in sorted(fixed.items(), key=lambda item: item[1].sent_ratio):
        ratio = number(float(f"{cell.sent_ratio:.4g}"))
        lines.append(f"| `{method}` | {ratio} | {_entry(cell, found.get(method), None)} |")
        if METHODS[method].silent:
            floor = Cell(method, 0, 0, "", dict(cell.floors))
            lines.append(f"| the best of `{method}`'s lines: silence | inf | {_interval(floor)} |")
    lines += ["", *(wrapped(_sentence(r, beside[r], above[r]), "  ") for r in study.ratios)]
    return "\n".join(lines)


def wrapped(text: str, indent: str = "") -> str:
    """In lines of the documents' width, no name cut."""
    return fill(text, WIDTH, subsequent_indent=indent, break_on_hyphens=False)


def _opponents(cells: Cells, inner_of: Mapping[str, str]) -> tuple[dict[str, str], dict[str, Mapping[int, float]]]:
    """By local step: the method that only averages, and silence's losses by seed."""
    local = {inner_of[method]: method for method, _ in cells if METHODS[method].optimizer.endswith(":LocalSGD")}
    silent: dict[str, Mapping[int, float]] = {
        inner_of[method]: cell.floors for (method, _), cell in cells.items() if METHODS[method].silent
    }
    return local, silent


def _losses(
    at: Mapping[str, Cell], local: Mapping[str, str], inner_of: Mapping[str, str], ratio: float
) -> dict[str, Mapping[int, float]]:
    names = {m: local.get(inner_of[m], local.get("nesterov", "")) for m in at}
    return {m: at[name].losses for m, name in names.items() if name in at and name != m}


def _interval(cell: Cell) -> str:
    kept = cell.converged
    if len(kept) < 2:
        return "diverged"
    half = float(stdtrit(len(kept) - 1, 0.975)) * stdev(kept) / math.sqrt(len(kept))
    lost = len(cell.losses) - len(kept)
    return f"{mean(kept):.3f} ± {half:.3f}" + (f" ({lost} of {len(cell.losses)} diverged)" if lost else "")


def _entry(cell: Cell, beside: Standing | None, above: Standing | None) -> str:
    mark = {"better": " ▲", "worse": " ▼"}.get(beside or "", "")
    return _interval(cell) + mark + (" ∅" if above in ("alike", "worse") else "")


def _conditions(study: Study, cells: Cells) -> str:
    seeds = {len(cell.losses) for cell in cells.values()}
    return (
        f"{study.workers} workers, {study.steps} steps, local step {study.inner} where the name says no other; "
        f"{study.trials} candidates of {len(study.lrs)} learning rates each ({study.lrs[0]:g} to {study.lrs[-1]:g}) a method "
        f"and ratio; test loss in nats, mean over {' to '.join(map(str, sorted(seeds)))} fresh seeds ± half of its "
        "95 % interval. "
        "▲ better than local averaging around the same local step, ▼ worse (paired by seed, Holm within a column, 5 %); ∅ not "
        "told apart from silence, or worse."
    )


def _sentence(ratio: float, beside: Mapping[str, Standing], above: Mapping[str, Standing]) -> str:
    def named(standing: Standing, of: Mapping[str, Standing]) -> str:
        return ", ".join(name for name, found in of.items() if found == standing) or "none"

    lost = ", ".join(name for name, found in above.items() if found != "better") or "none"
    return (
        f"* R_C {number(ratio)}: better than local averaging: {named('better', beside)}. Worse: {named('worse', beside)}. "
        f"Not better than silence: {lost}."
    )


def write_tables(path: str, document: Path = DOCUMENT) -> str:
    """The document with the tables of these rows between its two marks."""
    text = document.read_text()
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    found = "\n\n".join(table(name, cells) for name, cells in read(path).items())
    return f"{before}{BEGIN}\n\n{found}\n\n{END}{after}"


def main(arguments: Sequence[str]) -> None:
    """See the head of this file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="run studies, or go on with them")
    run.add_argument("studies", nargs="+", choices=list(studies()))
    run.add_argument("--out", required=True, help="folder of the results folders")
    run.add_argument("--gpus-per-trial", type=float, default=1.0)
    rows = commands.add_parser("rows", help="the chosen configurations' seeds, as CSV")
    rows.add_argument("results", help="the folder that `run` wrote")
    rows.add_argument("--out", required=True)
    commands.add_parser("table", help="write the tables into docs/methods.md").add_argument("rows")
    options = parser.parse_args(arguments)
    if options.command == "run":
        from cser_ray.train.logistics import Logistics

        for name in options.studies:
            run_study(
                studies()[name], f"{options.out}/{name}", logistics=Logistics(gpus_per_trial=options.gpus_per_trial)
            )
    elif options.command == "rows":
        with open(options.out, "w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(COLUMNS)
            for name in studies():
                if Path(options.results, name).exists():
                    writer.writerows(rows_of(name, read_chosen(f"{options.results}/{name}")))
    else:
        DOCUMENT.write_text(write_tables(options.rows))


if __name__ == "__main__":
    main(sys.argv[1:])
