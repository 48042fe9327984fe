"""The configuration that a comparison takes at one ratio, to be trained with, and what the comparison says of it."""

import math
import shlex
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from cser_ray.config import RunConfig
from cser_ray.knobs import in_words, read_from
from cser_ray.methods import has_ratio
from cser_ray.scale import ACCURACY, Scale
from cser_ray.structure import number
from tuning.compare.compare import compare
from tuning.compare.comparison import Cell, Comparison, Verdict, spread
from tuning.compare.render import chosen_by
from tuning.compare.selection import Choice, Chosen
from tuning.compare.tables import metric_text
from tuning.compare.text import paragraph
from tuning.compare.verdict import sentence, title
from tuning.take_home.reproduce import job_command, recorded_config, settings_file, settings_of_run, train_command

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Best:
    """A configuration to train with. `config` is that of one of its runs, which reached `test_acc` and `test_loss`."""

    config: RunConfig
    decision: tuple[str, ...]
    """What to know before training with it, the verdict first."""
    summary: str
    """The configuration and its result over all repeats, in a sentence."""
    test_acc: float
    test_loss: float
    run_ids: tuple[str, ...]
    """Its repeats that converged, as the store names them; `config` is of the first."""
    other_repeats: tuple[int, ...]
    scale: Scale = ACCURACY
    n_params: int | None = None
    """d: parameters of the model; None where its row does not say."""

    @cached_property
    def settings(self) -> dict[str, Any]:
        """The options of `cser-ray train`, by name. Raises ValueError for a run that no options describe."""
        return settings_of_run(self.config)

    def settings_file(self) -> str:
        """YAML for `cser-ray train --config`."""
        return settings_file(self.settings, [*self.decision, self.summary])

    def code(self) -> str:
        """Python that builds the optimizer in a loop of one's own. Needs torch; raises ValueError as `constructor` does."""
        from tuning.take_home.constructor import constructor

        return str(constructor(self.config, self.n_params))

    def report(self, results: str, path: str | None, code: str = "") -> str:
        """The decision from the folder `results`, then the commands; `path`: where the settings were written.

        `code`: of the optimizer, shown too.
        """
        others = ", ".join(map(str, self.other_repeats))
        real = bool(self.config.loop or self.config.overlap)  # what runs on no others
        again = (
            f"Repeat {self.config.repeat} again, on {'real' if real else 'virtual'} workers. "
            f"It reached test {self.scale.name} "
            f"{self.scale.told(self.test_acc)}, test loss {self.scale.loss_told(self.test_loss)}"
            + (f"; --repeat {others} gives the others" if others else "")
            + ":"
        )
        job = job_command(self.settings)
        cluster = "The same as a job on a cluster:" if real else "The same on real workers, as a job on a cluster:"
        if job is None:
            job = "ray job submit --working-dir . -- cser-ray train --distributed --config SETTINGS.yaml"
            cluster = "The same on real workers; a job takes such a path only from a file of settings (--out):"
        parts = [*self.decision, self.summary, again]
        text = "\n\n".join([*map(paragraph, parts), _indented(train_command(self.settings)), cluster, _indented(job)])
        if code:
            text += f"\n\nIts optimizer, for a training loop of your own:\n\n{_indented(code)}"
        text += f"\n\nThe comparison with its notes: cser-ray compare {shlex.quote(results)}"
        return text if path is None else f"{text}\nSettings: {path}   (cser-ray train --config takes them)"


def find_best(
    runs: "pd.DataFrame | Chosen", ratio: float, method: str | None = None, select: str | None = None
) -> Best:
    """What `compare` recommends at a ratio, else what has the highest mean there; or what `method` has chosen there.

    Raises ValueError as compare does; for a ratio or method that has no result; where nothing converged; and for a run
    whose row does not tell its settings.
    """
    chosen = Chosen.of(runs, select)
    return best_of(chosen, compare(chosen), ratio, method)


def best_of(chosen: Chosen, comparison: Comparison, ratio: float, method: str | None = None) -> Best:
    """`find_best` in a study that is compared already: `comparison` is of `chosen`. Raises as it does."""
    choices = chosen.choices
    own = next((c.ratio for c in choices.values() if c.method == method and not has_ratio(method)), None)
    verdict = next((v for v in comparison.verdicts if v.ratio == ratio), None)
    if verdict is None and ratio != own:
        ratios = ", ".join(number(v.ratio) for v in comparison.verdicts) or "none, only references"
        raise ValueError(f"there is no finished run at {title(ratio)}; the ratios of this study are {ratios}")
    taken = method or (None if verdict is None else verdict.recommended or verdict.best)
    if taken is None:
        raise ValueError(f"every method diverged at {title(ratio)}: there is nothing to train with")
    choice = choices.get((taken, ratio if own is None else own))
    if choice is None:
        there = ", ".join(c.method for c in comparison.cells if c.ratio == ratio or not has_ratio(c.method))
        raise ValueError(f"{taken} has no finished run at {title(ratio)}; there are {there}")
    converged = [r for r in choice.runs if not r["diverged"] and None not in (r["test_acc"], r["test_loss"])]
    if not converged:
        raise ValueError(
            f"{taken} has no repeat that converged at {title(choice.ratio)}: there is nothing to train with"
        )
    run = converged[0]
    cell = next(c for c in comparison.cells if (c.method, c.ratio) == (choice.method, choice.ratio))
    return Best(
        config=recorded_config(run["config_json"]),
        decision=tuple(_decision(comparison, verdict, cell, method)),
        summary=_summary(choice, cell, comparison.select),
        test_acc=run["test_acc"],
        test_loss=run["test_loss"],
        run_ids=tuple(r["run_id"] for r in converged),
        other_repeats=tuple(k for k in choice.repeats if k != run["repeat"]),
        scale=cell.scale,
        n_params=run["n_params"],
    )


def _decision(comparison: Comparison, verdict: Verdict | None, cell: Cell, asked: str | None) -> list[str]:
    said = list(comparison.advice)
    if verdict is not None:
        said.append(sentence(verdict))
        said += [f"Problem: {problem}" for problem in comparison.problems]
        if verdict.recommended is None:
            silent = [c.method for c in comparison.cells if c.ratio == math.inf and c.method != cell.method]
            said.append(
                "The comparison recommends no method here. "
                + f"What follows is {'what you asked for' if asked else f'the {cell.scale.best} mean'}, {cell.method}"
                + (f"; --method {silent[0]} gives the settings without communication." if silent else ".")
            )
        elif cell.method != verdict.recommended:
            said.append(f"You asked for {cell.method}; the comparison recommends {verdict.recommended}.")
    if cell.diverged:
        said.append(f"{cell.diverged} of {cell.n} repeats of {cell.method} diverged.")
    if cell.lr_edge:
        said.append(f"Learning rate {cell.lr:g} is on the edge of those tried: a better one may lie beyond.")
    return said


def _summary(choice: Choice, cell: Cell, select: str) -> str:
    words = [str(choice.configuration.structure or ""), in_words(read_from(cell.method, choice.configuration.knobs))]
    structure = f" ({', '.join(filter(None, words))})" if any(words) else ""
    scale = cell.scale
    return (
        f"{cell.method} at {title(cell.ratio)}{structure}, lr {cell.lr:g}, chosen by {chosen_by(select, scale)}: test "
        f"{scale.name} {scale.said(metric_text(cell))}, test loss "
        f"{scale.loss_said(spread(cell.test_loss, cell.test_loss_std, 3))}, n = {cell.n}."
    )


def _indented(command: str) -> str:
    return "\n".join("  " + line if line else "" for line in command.splitlines())
