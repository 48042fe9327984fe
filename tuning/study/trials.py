"""What a study hands to Tune: candidates of a cell, and the trials that run them."""

from dataclasses import dataclass

from cser_ray.config import RunConfig
from cser_ray.knobs import USUAL_KNOBS, Knobs
from cser_ray.structure import Structure

REAL = "real"
"""The stage that runs on real workers."""


@dataclass(frozen=True)
class Candidate:
    """A structure that a cell tries, with its learning rates and its other knobs."""

    number: int
    structure: Structure
    lrs: tuple[float, ...]
    knobs: Knobs = USUAL_KNOBS


@dataclass(frozen=True)
class Trial:
    """Tune's unit: one method with one structure; its learning rates and repeats are runs, stacked in one batch."""

    trial_id: str
    stage: str
    runs: tuple[RunConfig, ...]

    def run_ids(self) -> list[str]:
        """As the store names the runs."""
        return [run.run_id(self.trial_id) for run in self.runs]

    @property
    def rung(self) -> str:
        """ "virtual" or "distributed"."""
        return self.runs[0].rung

    @property
    def cost(self) -> int:
        """Steps times runs: how long it takes, in arbitrary units."""
        return sum(run.run_steps for run in self.runs)
