"""What a comparison of a study's methods says, as plain data: cells, references, twins and verdicts.

Test metrics stand here for chosen configurations, and for those with the learning rate chosen for synchronous SGD.
Accuracies in percent, or the task's metric in its unit, losses in nats, bytes per worker; mean and sample
standard deviation (n - 1) are over the repeats that converged, beside the count of those that did not.
"""

from dataclasses import dataclass, field

from cser_ray.scale import ACCURACY, Scale

NO_COLUMN = {"column": False}
"""Of a field that tables leave out."""


@dataclass(frozen=True)
class Cell:
    """The chosen configuration of one method at one ratio. None: not measured, or no repeat converged."""

    method: str
    ratio: float
    n: int
    diverged: int
    repeats: tuple[int, ...]
    test_accs: tuple[float | None, ...]
    """By repeat; None where it diverged."""
    test_acc: float | None
    test_acc_std: float | None
    test_loss: float | None
    test_loss_std: float | None
    value_retained: float | None
    """(zero - method) / (zero - sgd) in test loss, zero being the lowest of no-sync's three lines."""
    under_floor: bool
    winner: bool
    reset_interval: int | None
    reset_ratio: float | None
    gradient_ratio: float | None
    compressor: str | None
    residual_in_model: float | None
    outer_lr: float | None
    outer_momentum: float | None
    reset_delay: int | None
    ratio_schedule: str | None
    lr: float
    lr_edge: str
    """"low", "high" or "only" where no smaller, larger or other rate was tried with this structure; else ""."""
    untuned_lr: float | None
    """The rate chosen for synchronous training with the same local step."""
    untuned_n: int
    """Repeats of the chosen structure at that rate."""
    untuned_diverged: int
    untuned_test_acc: float | None
    untuned_test_acc_std: float | None
    untuned_test_loss: float | None
    untuned_test_loss_std: float | None
    lr_range: float | None
    """Largest over smallest of the neighbouring rates around `lr` within 10 % of its mean validation loss."""
    lr_range_open: bool
    """Whether the smallest or largest rate tried is among them, so that the range may be wider."""
    block_order: str | None
    realised_ratio: float | None
    realised_ratio_bf16: float | None
    rounds: float | None
    syncs_per_block: float | None
    bytes_sent: float | None
    consensus_distance: float | None
    worker_acc: float | None
    """A worker's own test accuracy, mean over workers."""
    ensemble_acc: float | None
    """That of the ensemble of the workers' models: measured for no-sync."""
    scale: Scale = field(default=ACCURACY, metadata=NO_COLUMN)
    """What the columns of accuracy hold."""

    @property
    def scores(self) -> dict[int, float]:
        """Test accuracy, or the task's metric, by repeat, of those that converged; more is better."""
        return _by_repeat(self.repeats, self.test_accs, self.scale)


@dataclass(frozen=True)
class Reference:
    """A line beside every ratio: synchronous training, or what a user gets with no communication at all."""

    name: str
    method: str
    """Whose models they are."""
    is_floor: bool
    """Whether it is the most accurate of the three lines without communication."""
    is_dense: bool
    """Whether it is what methods with the same local step are measured against."""
    is_silent: bool
    """Whether nothing was communicated."""
    repeats: tuple[int, ...]
    test_accs: tuple[float | None, ...]
    test_acc: float | None
    test_acc_std: float | None
    test_loss: float | None
    test_loss_std: float | None
    scale: Scale = field(default=ACCURACY, metadata=NO_COLUMN)

    @property
    def scores(self) -> dict[int, float]:
        """Test accuracy, or the task's metric, by repeat, of those that have one; more is better."""
        return _by_repeat(self.repeats, self.test_accs, self.scale)


@dataclass(frozen=True)
class Twin:
    """A chosen configuration on real workers, beside the virtual runs of the same repeats; never mixed into them."""

    method: str
    ratio: float
    repeats: tuple[int, ...]
    backend: str | None
    diverged: int
    test_acc: float | None
    virtual_test_acc: float | None
    realised_ratio: float | None
    virtual_realised_ratio: float | None
    wall_s: float | None
    comm_s: float | None


@dataclass(frozen=True)
class Agreement:
    """How well a cheaper rung ranks the configurations and repeats that also ran on a dearer one."""

    ratio: float | None
    """None: over all ratios."""
    below: str
    above: str
    n: int
    tau: float | None
    """Kendall's rank correlation: 1 for the same order, 0 for none; None where all points of a rung are equal."""
    mean_difference: float | None
    """Dearer less cheaper, in the unit of the score chosen by."""
    largest_difference: float | None
    diverged_on_one: int
    """Points that diverged on one of the two only; they are in no difference."""


@dataclass(frozen=True)
class Verdict:
    """What a user should do at one ratio, and what supports it."""

    ratio: float
    best: str | None
    """Best mean test accuracy, or metric, among the methods with the fewest diverged repeats."""
    winner: str | None
    """`best`, where a paired test supports it against every other method."""
    recommended: str | None
    p_values: dict[str, float]
    """Holm-adjusted p that `best` is above each other method."""
    cost_to_sgd: float | None
    """Points, or units of the metric, worse than synchronous SGD where a paired test tells them apart, 0 where it does not;
    None: not tested."""
    advice: str
    reason: str
    """Why there is no winner; empty where there is one."""


@dataclass(frozen=True)
class Comparison:
    """A study, compared. `cells` are by method and ratio, the references sgd and no-sync among them."""

    task: str
    task_hash: str | None
    model: str | None
    n_params: int | None
    inner: str
    """The local step of all methods, where their names do not say another."""
    workers: int
    steps: int
    select: str
    cells: tuple[Cell, ...]
    references: tuple[Reference, ...]
    reference: str
    """The synchronous method with the local step of the compared ones; of the first of them, where they have several."""
    twins: tuple[Twin, ...]
    agreements: tuple[Agreement, ...]
    verdicts: tuple[Verdict, ...]
    gap_in_std: float | None
    """From SGD to no-sync in test loss, in standard deviations of a repeat; None where it is not known."""
    shows_value: bool | None
    advice: tuple[str, ...]
    """What holds for all ratios; read before the verdicts."""
    notes: tuple[str, ...]
    problems: tuple[str, ...]
    """What was not equal between methods: no winner is marked where there is any."""
    scale: Scale = ACCURACY
    """What the task is judged by."""


@dataclass(frozen=True)
class ConfigurationRow:
    """One configuration of a study as it was run: for `--all`. Test columns only where it is the chosen one."""

    method: str
    ratio: float
    reset_interval: int | None
    reset_ratio: float | None
    gradient_ratio: float | None
    compressor: str | None
    residual_in_model: float | None
    outer_lr: float | None
    outer_momentum: float | None
    reset_delay: int | None
    ratio_schedule: str | None
    block_order: str | None
    lr: float
    paper_rate: bool
    """Whether the learning rate is of the paper's grid."""
    rung: str
    stages: str
    n: int
    diverged: int
    unfinished: int
    val_loss: float | None
    val_loss_std: float | None
    val_acc: float | None
    val_acc_std: float | None
    chosen: bool
    test_acc: float | None
    test_acc_std: float | None
    share: float | None
    theorem1: float | None
    realised_ratio: float | None
    rounds: float | None
    consensus_distance: float | None
    scale: Scale = field(default=ACCURACY, metadata=NO_COLUMN)


def spread(mean: float | None, std: float | None, digits: int = 1) -> str:
    """98.7±.3: a mean with its standard deviation, where there is one; – where there is neither."""
    if mean is None:
        return "–"
    return f"{mean:.{digits}f}" + ("" if std is None else "±" + f"{std:.{digits}f}".removeprefix("0"))


def _by_repeat(repeats: tuple[int, ...], values: tuple[float | None, ...], scale: Scale) -> dict[int, float]:
    return {k: scale.sign * v for k, v in zip(repeats, values, strict=True) if v is not None}
