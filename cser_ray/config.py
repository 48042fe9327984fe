"""What a run is asked for: settings, each declared once; their names are Tune's keys and the columns of the results store.

`Shared` are those that all runs of a study have in common: `RunConfig` adds what tells its runs apart, and
`tuning.study.study.Study` what to search. To add a setting, add a field here; `cser_ray.settings` says what follows.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from cser_ray.budget import ratio_of, structure_for
from cser_ray.knobs import KNOBS, Knobs
from cser_ray.methods import METHODS
from cser_ray.ratio_schedule import CONSTANT, BudgetPhase, phases
from cser_ray.registry import Registry
from cser_ray.settings import check_settings, declared, setting
from cser_ray.structure import Structure

SCHEDULES: dict[str, Callable[[float], float]] = {
    "step": lambda done: 0.2 ** sum(done >= at for at in (0.3, 0.6, 0.8)),  # the paper's CIFAR-100 schedule
    "cosine": lambda done: 0.5 * (1 + math.cos(math.pi * done)),  # the paper's ImageNet schedule
    "constant": lambda done: 1.0,
}
"""Factor of the learning rate by the share of the run that is done, in [0, 1); the same for every method."""
BLOCK_ORDERS: Registry[Callable[..., Any]] = Registry(
    "block order",
    "cser_ray.block_orders",
    {
        "random": "cser_ray.compressors.block_orders:random",
        "permuted": "cser_ray.compressors.block_orders:permuted",
        "cyclic": "cser_ray.compressors.block_orders:cyclic",
    },
)
"""How GRBS picks blocks: name -> function of (blocks, ratio, call, seed, stream)."""


@dataclass(frozen=True)
class LearningRates:
    """Learning rates where nobody says: the grid of a study, and the rate of a single run."""

    grid: tuple[float, ...]
    single: float


_ADAPTIVE = LearningRates((3e-4, 1e-3, 3e-3, 1e-2), 2e-3)
INNERS = {"nesterov": LearningRates((0.05, 0.1, 0.5), 0.1), "adamw": _ADAPTIVE, "muon": _ADAPTIVE}
"""Local steps, as `cser_ray.optimizers` names them -> their rates: those of SGD are far too large for the others."""
EXECUTIONS = ("auto", "eager", "graph", "compiled")
"""How the forward and backward pass of a model is run; `auto` is a CUDA graph for a real worker with a GPU."""
RUNGS = ("virtual", "distributed")
"""How a run is carried out: all workers in one process, or each in processes of its own."""
DTYPES = ("float32", "tf32", "bfloat16", "float64")
"""What models are computed in. In tf32 a GPU rounds the factors of float32 products; in bfloat16 autocast computes the
models, and their parameters are float32."""


@dataclass(frozen=True)
class Shared:
    """The settings that all runs of a study have in common. Raises ValueError for a value that a setting cannot have."""

    task: str = setting(
        "digits", "Model, data and loss by name: see `cser-ray tasks`; or module.path:ClassName.", unit="text"
    )
    model: str = setting("", "A torchvision classifier in place of the task's own (image tasks).", unit="text")
    data_dir: str = setting(
        "",
        "Where the task's data lies, for tasks that need a download.",
        unit="text",
        column=False,  # a path of one machine is nobody else's business
        free="the data themselves are compared by their hash",
    )
    coarse_labels: bool = setting(False, "cifar100: the 20 coarse classes.", unit="flag")
    workers: int = setting(8, "n, the workers that train together, virtual ones included.", unit="workers", least=1)
    processes_per_worker: int = setting(
        1, "k: a real worker is a host of k processes that share its batch.", unit="processes", least=1
    )
    steps: int = setting(
        2048,
        "Steps of a run, rounded up to whole reset intervals.",
        unit="steps",
        least=1,
        by_task=True,
        alike="multiple of H",
    )
    batch_size: int = setting(16, "Samples a worker and step.", unit="examples", least=1, by_task=True)
    seed: int = setting(0, "Of models, shards, batches and blocks; the same seed gives the same study.")
    block_order: str = setting(
        "random", "How GRBS picks blocks; random is the paper's.", unit="text", choices=lambda: BLOCK_ORDERS
    )
    inner: str = setting(
        "nesterov",
        "The local step of every method, its reference's too: SGD with Nesterov momentum, AdamW, or Muon for matrices.",
        unit="text",
        choices=lambda: INNERS,
        kind="inner step",
    )
    momentum: float = setting(
        0.9, "Nesterov momentum, local to each worker; the first beta of AdamW.", least=0, below=1
    )
    beta2: float = setting(0.95, "Second beta of AdamW.", by_method=True, least=0, below=1)
    weight_decay: float = setting(
        5e-4, "Weight decay: coupled for SGD, decoupled for AdamW.", least=0, below=math.inf, by_task=True
    )
    max_grad_norm: float = setting(
        0.0,
        "Norm that the whole gradient of each worker is clipped to before its local step; 0 clips nothing.",
        least=0,
        below=math.inf,
        by_task=True,
    )
    accumulation: int = setting(
        1, "Micro-batches that a worker's batch is taken in, one after the other, for memory.", least=1, by_task=True
    )
    schedule: str = setting("step", "Learning rate over time.", unit="text", choices=lambda: SCHEDULES, by_task=True)
    warmup_steps: int = setting(
        0, "Steps of linear warm-up, the same for every method.", unit="steps", least=0, by_task=True
    )
    dtype: str = setting(
        "float32",
        "What models are computed in, on a GPU tf32 for products of float32, or bfloat16 by autocast; parameters are float32.",
        unit="text",
        choices=lambda: DTYPES,
        kind="precision",
    )
    execution: str = setting(
        "auto",
        "How passes are run: eager, as CUDA graphs, or compiled; auto compiles no real worker, and takes graphs on a GPU.",
        unit="text",
        choices=lambda: EXECUTIONS,
        kind="way to run passes",
        free="it is faster or slower, and computes the same up to rounding",
    )
    evaluations: int = setting(
        8,
        "How often the averaged model is evaluated, the last time after the last step.",
        least=1,
        by_task=True,
        free="evaluation is on a copy and changes no step",
    )

    def __post_init__(self) -> None:
        check_settings(self)
        if self.batch_size % self.processes_per_worker:
            raise ValueError(
                f"batch_size is shared evenly by the processes of a worker, but {self.batch_size} is no multiple of "
                f"processes_per_worker = {self.processes_per_worker}"
            )
        own = self.batch_size // self.processes_per_worker
        if own % self.accumulation:
            raise ValueError(
                f"accumulation = {self.accumulation}: micro-batches are equally large, but a process takes {own} samples a "
                "step, no multiple of it. batch_size counts the samples of all micro-batches of a worker's step"
            )
        if self.warmup_steps > self.steps:
            raise ValueError(
                f"warmup_steps = {self.warmup_steps}: a warm-up is at most as long as the {self.steps} steps"
            )


@dataclass(frozen=True)
class RunConfig(Shared):
    """One method at one structure, learning rate and repeat, on one task.

    Runs that differ only in `lr`, `repeat` and the seed's consequences can be stacked in one batch. Raises ValueError for
    what a setting cannot be.

    >>> RunConfig(method="cser", ratio=32, reset_interval=16, reset_ratio=4, gradient_ratio=64).structure
    Structure(reset_interval=16, reset_ratio=4.0, gradient_ratio=64.0)
    """

    method: str = setting(
        "cser",
        "Optimizer by name: see `cser-ray methods`.",
        unit="text",
        choices=lambda: METHODS,
        free="they are compared",
    )
    ratio: float = setting(
        256.0,
        "Overall ratio R_C asked for; inf for no communication, 1 for synchronous SGD.",
        unit="×",
        free="methods are compared at each ratio apart",
    )
    reset_interval: int = setting(
        1, "H, steps from one reset to the next.", unit="steps", least=1, by_method=True, free="it is searched"
    )
    reset_ratio: float = setting(
        1.0, "RC1, the ratio of a reset's compressor.", unit="×", by_method=True, free="it is searched"
    )
    gradient_ratio: float = setting(
        math.inf,
        "RC2, the ratio of the gradient sync's compressor; inf for no such sync.",
        unit="×",
        by_method=True,
        free="it is searched",
    )
    compressor: str = setting(
        Knobs.compressor,
        "What compresses, as text: see `cser-ray compressors`; --reset-ratio and --gradient-ratio say how much, in bytes.",
        unit="text",
        by_method=True,
        free="it is searched",
    )
    residual_in_model: float = setting(
        Knobs.residual_in_model,
        "Share of what a message leaves behind that is put into the model: 1 is error reset, 0 error feedback.",
        by_method=True,
        least=0,
        most=1,
        free="it is searched",
    )
    lr: float = setting(
        INNERS["nesterov"].single,
        "Learning rate before warm-up and decay.",
        above=0,
        below=math.inf,
        free="it is searched",
    )
    outer_lr: float = setting(
        Knobs.outer_lr,
        "Learning rate of an outer optimizer.",
        by_method=True,
        above=0,
        below=math.inf,
        free="it is searched",
    )
    outer_momentum: float = setting(
        Knobs.outer_momentum, "Momentum of an outer optimizer.", by_method=True, least=0, below=1, free="it is searched"
    )
    reset_delay: int = setting(
        Knobs.reset_delay,
        "Steps after which a reset's mean is applied, so that it may travel while they compute.",
        unit="steps",
        by_method=True,
        least=0,
        free="it is searched",
    )
    ratio_schedule: str = setting(
        Knobs.ratio_schedule,
        "How the bytes are shared out over the run, as text: constant, dense-start/0.5, dense-end/0.5, qsr, guardrail/0.1.",
        unit="text",
        by_method=True,
        free="it is searched; the total is the same",
    )
    repeat: int = setting(
        0,
        "Another seed of the same run: initialisation, data order and blocks, the same in every method.",
        least=0,
        free="repeats of equal number are paired",
    )
    overlap: bool = setting(
        False,
        "Real workers send during the backward pass, where their method can.",
        unit="flag",
        free="the same is sent, but earlier and in more collectives",
    )
    rung: str = setting(
        "virtual",
        "How the run is carried out: virtual, or distributed over real workers.",
        unit="text",
        option=False,
        choices=lambda: RUNGS,
        free="rungs are compared apart",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_inner(self.method, self.inner)
        if self.ratio_schedule != CONSTANT and self.reset_delay:
            raise ValueError(
                f"ratio_schedule = {self.ratio_schedule} moves a budget while none of it is on the wire: leave reset_delay out"
            )
        self.phases()
        if self.overlap and self.max_grad_norm:
            raise ValueError(
                f"max_grad_norm = {self.max_grad_norm:g}: a gradient is clipped once it is whole, and overlap has sent parts "
                "of it by then: leave one of the two out"
            )
        if self.reset_delay >= self.run_steps:
            raise ValueError(
                f"reset_delay = {self.reset_delay}: in the {self.run_steps} steps of a run no reset would arrive; ask for less"
            )

    @property
    def structure(self) -> Structure:
        """(H, R_C1, R_C2)."""
        return Structure(self.reset_interval, self.reset_ratio, self.gradient_ratio)

    def phases(self) -> tuple[BudgetPhase, ...]:
        """When the run spends how much. Raises ValueError where its ratio schedule cannot be followed."""
        return phases(METHODS[self.method], self.ratio_schedule, self.structure, self.run_steps, self.rate)

    @property
    def knobs(self) -> Knobs:
        """What is searched beside it."""
        return Knobs(**{name: getattr(self, name) for name in KNOBS})

    @property
    def run_steps(self) -> int:
        """Steps really taken: `steps`, raised to the next multiple of H, so that a run ends with a reset."""
        return -(-self.steps // self.reset_interval) * self.reset_interval

    @property
    def run_seed(self) -> int:
        """Seed of initialisation, data order and blocks: equal for the same repeat of every method."""
        return self.seed * 1_000_003 + self.repeat

    def run_id(self, trial_id: str) -> str:
        """The run's name in the results store, unique in its study."""
        return f"{trial_id}-lr{self.lr:.6g}-r{self.repeat}"

    def rate(self, t: int) -> float:
        """The factor of `lr` at step t = 1 ... run_steps."""
        warmup = min(1.0, t / self.warmup_steps) if self.warmup_steps else 1.0
        return warmup * SCHEDULES[self.schedule]((t - 1) / self.run_steps)

    def columns(self) -> dict[str, Any]:
        """The settings as a row of the store has them: what the method does not read is null, and so is empty text."""
        reads = reads_of(self.method, self.inner)
        kept = [s for s in declared(self) if s.setting.column]
        values = {s.name: getattr(self, s.name) if not s.setting.by_method or s.name in reads else None for s in kept}
        if METHODS[
            self.method
        ].has_ratio:  # the knobs that it does not read stand at their defaults, as its formula has it
            values |= asdict(self.structure)
        return values | {"steps": self.run_steps, "model": self.model or None}


def reads_of(method: str, inner: str) -> frozenset[str]:
    """The settings that only some methods read, and this one does around this local step."""
    return METHODS[method].reads | ({"beta2"} if inner != "nesterov" else set())


def local_step(methods: Iterable[str], inner: str) -> str:
    """The local step that all these methods have in a study around `inner`; `inner` where they have several."""
    steps = {METHODS[name].inner if METHODS[name].inner != "nesterov" else inner for name in methods}
    return steps.pop() if len(steps) == 1 else inner


def check_inner(method: str, inner: str) -> None:
    """Raise ValueError where a method cannot have a local step other than its own."""
    record = METHODS[method]
    if inner != "nesterov" and (record.own_step or record.inner not in ("nesterov", inner)):
        own = "that its name says" if record.inner != "nesterov" else "of its own"
        raise ValueError(f"{method} has a local step {own}: leave inner = {inner} out, or take another method")


def config_at(method: str, ratio: float, reset_interval: int | None = None, **values: Any) -> RunConfig:
    """A method at an overall ratio, its structure by the rule of `structure_for`; `values` are the other fields.

    A method without a ratio of its own stands at its only one. Raises ValueError for what cannot be met.
    """
    if not METHODS[method].has_ratio:
        ratio = ratio_of(method, Structure())
    structure = structure_for(method, ratio, reset_interval)
    values = dict(METHODS[method].usual) | values
    return RunConfig(method=method, ratio=ratio, **asdict(structure), **values)


def setting_of(row: Mapping[str, Any], name: str, config: Mapping[str, Any]) -> Any:
    """The value of a setting in a row that may be older than the setting: then it stood at its default.

    `config`: the configuration that the row holds as JSON, which knows settings that were no column then.
    """
    value = row.get(name)
    return config.get(name, DEFAULTS[name]) if value is None else value


DEFAULTS: dict[str, Any] = {each.name: each.default for each in declared(RunConfig)}
"""Setting of a run -> what it is where nobody says."""
