"""`Run`: what a training loop of the user's own is given, in each worker process of each run."""

import hashlib
import math
import random
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

import numpy as np
import torch
from torch import nn

from cser_ray.communication.communicator import Communicator, Entry
from cser_ray.config import RunConfig
from cser_ray.integrations.generators import generators, set_generators
from cser_ray.integrations.workers import flat_optimizer
from cser_ray.methods import METHODS
from cser_ray.optimizers import FlatOptimizer
from cser_ray.own_loop.course import Course
from cser_ray.own_loop.feed import BatchFeed, Count, first_tensor
from cser_ray.own_loop.keeping import Keeper, gathered
from cser_ray.own_loop.optimizing import build, move_budget
from cser_ray.own_loop.rows import epoch_row, final_scores, merged, progress, run_row, scores
from cser_ray.seeds import Purpose, derived_seed
from cser_ray.store.read import EpochRow, RunRow
from cser_ray.train.record import TrialIdentity, diverged_above

Sink = Callable[[list[EpochRow], list[RunRow]], None]
"""Called on every process alike after each evaluation, with the rows so far; it may raise to stop the trial."""


class Run:
    """One run of a trial as one worker process sees it: a method at one structure, learning rate and repeat.

    The loop builds its model and its data, takes the optimizer from here, and steps as often as `steps` says. What it did
    is recorded from inside the optimizer, so that methods whose loops differ are not compared.

    >>> def train_loop(run):
    ...     model = nn.Linear(3, 1)
    ...     optimizer = run.optimizer(model.parameters(), weight_decay=0.1)
    ...     for step, (x, y) in run.steps([(torch.ones(4, 3), torch.ones(4, 1))]):
    ...         nn.functional.mse_loss(model(x), y).backward()
    ...         optimizer.step()
    ...         optimizer.zero_grad()
    ...         if run.evaluation_due(step):
    ...             with optimizer.averaged_parameters(), torch.no_grad():
    ...                 run.report(val_loss=nn.functional.mse_loss(model(x), y).item())
    >>> run = Run(RunConfig(loop="doc:train_loop", method="sgd", ratio=1, steps=4, workers=1), Communicator(group=None))
    >>> train_loop(run)
    >>> run.finish().status
    'FINISHED'
    """

    def __init__(
        self,
        config: RunConfig,
        communicator: Communicator,
        device: torch.device | None = None,
        identity: TrialIdentity | None = None,
        sink: Sink | None = None,
        keeper: Keeper | None = None,
        every_s: float = 0.0,
        source: str | None = None,
    ):
        if communicator.size != config.workers:
            raise ValueError(f"{config.workers} workers are asked for, and {communicator.size} are here")
        self.config = config
        """The trial's settings, with this run's `lr` and `repeat`."""
        self.device = device or torch.device("cpu")
        """Where this process computes."""
        self.worker, self.workers = communicator.rank, communicator.size
        """Which of the n workers this process belongs to, from 0, and n: for shards of data."""
        self.process, self.processes = communicator.local_rank, communicator.ranks_per_host
        """Which of the processes of its worker this one is, from 0, and how many share its batch: one, as a rule."""
        self.seed = config.run_seed
        """The same for the same repeat of every method, on every worker: of initialisation and data order."""
        self.steps_total = config.run_steps
        """Steps of the run, whole reset intervals."""
        self.step = 0
        """The step that the loop is at, from 1."""
        self.constant_loss: float | None = None
        """Set it to the loss of a constant predictor, if you know it: a final training loss 30 % above it is divergence."""
        self._communicator, self._source = communicator, source
        self._identity = identity or TrialIdentity("alone", "alone")
        self._sink, self._keeper, self._every_s = sink, keeper, every_s
        self._optimizer: FlatOptimizer | None = None
        self._feed: BatchFeed | None = None
        self._kept: dict[str, Any] = {}
        self._reports: list[tuple[int, dict[str, Any]]] = []
        self._reported: dict[str, Any] = {}
        self._course = Course(config.lr, ahead=self.device.type == "cuda")
        self._schedule_asked = False
        self._ended = False
        self._diverged_step: int | None = None
        self._started_at, self._wall_before, self._start = datetime.now(UTC), 0.0, time.perf_counter()
        self._saved_at = time.monotonic()
        self._row: RunRow | None = None
        self._saved = None if keeper is None else keeper.newest()
        self.resumed = self._saved is not None
        """Whether this run goes on from a checkpoint; what was kept is loaded when `steps` begins."""
        _seed_everything(derived_seed(self.seed, Purpose.INITIALISATION, self.worker, self.process))

    # ------------------------------------------------------------------------------------------------ for the loop

    def optimizer(self, params: Iterable[Any], **fixed: Any) -> FlatOptimizer:
        """The trial's optimizer on the model's parameters, or on groups of them as torch.optim takes them.

        Method, structure, inner step, compressor, learning rate and knobs are the trial's. A group's rate is a multiple of
        it: `"lr_scale": 0.1`.

        Args:
            params: of the whole model: messages are solved for as many.
            fixed: the same for all methods: `weight_decay`, `momentum`, `betas`, `eps`, `adjust_lr_fn`.

        Raises:
            ValueError: for anything else, for a second optimizer, and where the model cannot meet the trial's ratio.
        """
        if self._optimizer is not None:
            raise ValueError("run.optimizer was called before: a run has one optimizer, give it groups of parameters")
        optimizer = self._optimizer = build(self.config, params, self._communicator, fixed)
        self._course.began(optimizer.x)
        optimizer.register_step_pre_hook(self._before_step)
        optimizer.register_step_post_hook(self._after_step)
        return optimizer

    def keep(self, **things: Any) -> None:
        """Register what a checkpoint holds, each with `state_dict()` and `load_state_dict()`: model=model, scheduler=...

        Each process saves its own, at evaluations, with the optimizer and the states of the random generators. What was
        saved is loaded when `steps` begins. Without a `keep` a run that was killed begins anew.

        Raises ValueError for a thing without the two.
        """
        for name, thing in things.items():
            if thing is None:
                continue
            if not (callable(getattr(thing, "state_dict", None)) and callable(getattr(thing, "load_state_dict", None))):
                raise ValueError(
                    f"run.keep({name}=...): a {type(thing).__name__} has no state_dict() and load_state_dict()"
                )
            self._kept[name] = thing

    def steps(self, loader: Any, accumulate: int = 1, samples: Count | None = None) -> Iterator[tuple[int, Any]]:
        """(step, batch) for each step that is left, from 1 to `steps_total`; an exhausted loader is begun anew.

        Args:
            loader: this worker's own batches: a DataLoader, or anything that can be iterated again and again.
            accumulate: so many batches a step; the loop then gets a list of them.
            samples: counts those of a batch; by default the length of the first tensor in it.

        Raises:
            ValueError: for a loader without a batch, and for a second call.
        """
        if self._feed is not None:
            raise ValueError("run.steps was called before: a run has one loop over its steps")
        if self._optimizer is None:
            raise ValueError("run.steps comes after run.optimizer: what was saved is loaded into both when steps begin")
        feed = self._feed = BatchFeed(loader, accumulate, samples)
        self._restore(feed)
        for step in range(self.step + 1, self.steps_total + 1):
            self._course.resume_clock()
            batch = feed.next()
            if step == 1:
                self._course.fed(first_tensor(batch))
            self._begin(step)
            self.step = step
            yield step, batch
            if self.evaluation_due(step):  # not wherever there is a report: on the other processes there may be none
                self._settle()
            if self._ended:
                return

    def lr_factor(self, step: int) -> float:
        """What the study's schedule and warm-up multiply the learning rate with at a step, for a scheduler of the loop."""
        self._schedule_asked = True
        return self.config.rate(step)

    def evaluation_due(self, step: int) -> bool:
        """Whether the study evaluates after this step; the same on every process, and the last step is one."""
        count = self.config.evaluations
        return any(step == math.ceil(self.steps_total * (k + 1) / count) for k in range(count))

    def report(
        self,
        val_loss: float,
        train_loss: float | None = None,
        test_loss: float | None = None,
        metrics: Mapping[str, float] | None = None,
        test_metrics: Mapping[str, float] | None = None,
    ) -> None:
        """Say what the averaged model reached after this step; on every process, whose mean then counts, or on one.

        Nothing is sent here: processes meet at the next step after one that is due, so that none waits for another.
        A report of another step is taken along there, and counts as an evaluation more.

        Configurations are chosen by `val_loss`. Methods are compared by `test_loss` of the last evaluation, which chooses
        nothing, and by `val_loss` where there is none; with `--compare-by NAME` by the metric of that name.

        Raises ValueError for what is no number.
        """
        values = {"val_loss": val_loss, "train_loss": train_loss, "test_loss": test_loss}
        told: dict[str, Any] = {name: _number(name, value) for name, value in values.items()}
        for name, each in (("metrics", metrics), ("test_metrics", test_metrics)):
            told[name] = None if each is None else {key: _number(key, value) for key, value in each.items()}
        if told["val_loss"] is None:
            raise ValueError("run.report needs a val_loss: configurations are chosen by it")
        self._reports.append((self.step, told))
        self._course.stop_clock()

    def evaluate(
        self,
        measure: Callable[[], Any],
        model: nn.Module | None = None,
        recompute_batchnorm: Iterable[Any] | None = None,
    ) -> None:
        """Report what `measure()` finds at the averaged model: a loss, or a mapping of the arguments of `report`.

        Every process calls it. Of a method that never communicates it also measures each worker's own model, the floor's
        second line, and of all the distance of the models from their mean. `model` and `recompute_batchnorm`: see
        `averaged_parameters`.
        """
        optimizer = self._built()
        self._course.stop_clock()
        with torch.no_grad():
            with optimizer.averaged_parameters(model, recompute_batchnorm):
                own, mean = optimizer.guard.averaged_over, optimizer.x
                found = _arguments(measure())
                assert own is not None
                spread = (own - mean).pow(2).sum(dtype=torch.float64) / mean.pow(2).sum(dtype=torch.float64)
            self.report(**found)
            self._reports[-1][1]["consensus"] = float(spread)
            if METHODS[self.config.method].silent:
                step, values = self._reports[-1]
                self.report(**_arguments(measure()))
                _, values["worker"] = self._reports.pop()
                self._reports[-1] = (step, values)

    # ------------------------------------------------------------------------------------------------ for who runs it

    @classmethod
    def alone(cls, **settings: Any) -> "Run":
        """A run without a study, to try a loop: in one process, or in those of torchrun. Reports are printed.

        `settings` are those of a run, as `method="csea", ratio=16, lr=0.1, steps=100`; the workers are the processes.
        """
        from cser_ray.own_loop.alone import alone

        return alone(**settings)

    def finish(self) -> RunRow:
        """After the loop has returned, on every process: the run's last row.

        Raises ValueError where the loop has built no optimizer, or never reported.
        """
        optimizer = self._built()
        if any(gathered(bool(self._reports))) or not self._ended:
            self._settle(last=True)
        if self._row is None or self._row.val_loss is None:
            raise ValueError(
                f"{self.config.loop or 'the loop'} returned after {optimizer.t} steps and reported nothing: call "
                "run.report(val_loss=...) where run.evaluation_due(step)"
            )
        if self._keeper is not None:
            self._keeper.remove()
        return self._row

    def _begin(self, step: int) -> None:
        for phase in self.config.phases():
            if phase.first == step:
                move_budget(self.config, self._built(), phase)

    def _before_step(self, optimizer: Any, *arguments: Any) -> None:
        if self._feed is None:  # a framework's loop: its next step is where all processes meet
            if self.step and self.evaluation_due(self.step):
                self._settle()
            self._begin(self._built().t + 1)
        self._course.before_step(optimizer.param_groups)

    def _after_step(self, optimizer: Any, *arguments: Any) -> None:
        if self._feed is None:
            self.step = self._built().t
        if self.device.type == "cuda" and self.evaluation_due(self.step):
            torch.cuda.synchronize(self.device)  # else the steps' time would be the evaluation's
        self._course.after_step()

    def _settle(self, last: bool = False) -> None:
        """All processes bring together what they reported, and the rows are made anew. They meet here, and only here."""
        optimizer, feed, course = self._built(), self._feed, self._course
        course.stop_clock()
        mine = {
            "reports": self._reports,
            "finite": bool(torch.isfinite(optimizer.x).all()),
            "samples": 0 if feed is None else feed.samples,
            "start": course.start,
            "due": time.monotonic() - self._saved_at >= self._every_s,
        }
        everyone = gathered(mine)
        self._reports = []
        reports = merged([each["reports"] for each in everyone])
        finite = all(each["finite"] for each in everyone)
        samples = round(sum(each["samples"] for each in everyone) / self.workers)
        epochs = None if feed is None else feed.passes
        wall_s = self._wall_before + time.perf_counter() - self._start
        told = progress(self.config, self._communicator, course.steps, course.training_s, wall_s)
        epoch_rows: list[EpochRow] = []
        for step, values in reports.items():
            again = course.evaluated[-1:] == [step]  # something more of the same evaluation
            known = {name: value for name, value in values.items() if value is not None}
            self._reported = self._reported | known if again else values
            reached = scores(self._reported, self.config)
            lr = course.last_rate * self.config.lr
            number = len(course.evaluated) - again
            epoch_rows.append(
                epoch_row(self.config, self._identity, step, number, epoch=epochs or 0.0, lr=lr, **reached, **told)
            )
            course.evaluated += [] if again else [step]
            finite &= all(math.isfinite(values.get(name) or 0.0) for name in ("val_loss", "train_loss"))
        last = last or self.step >= self.steps_total
        if self._diverged_step is None and (not finite or (last and self._too_high())):
            self._diverged_step = course.steps
        self._ended = last = last or not finite
        if not self._schedule_asked and (self.config.schedule != "step" or self.config.warmup_steps):
            raise ValueError(
                f"schedule = {self.config.schedule} with warmup_steps = {self.config.warmup_steps} is asked for, and the loop "
                "never called run.lr_factor(step): multiply the rate by it, or leave the two out"
            )
        columns: dict[str, Any] = (
            course.columns() | told | {"batch_size": 0}
        )  # not known where a framework has the loop
        if self._reported:
            columns |= scores(self._reported, self.config)
            columns |= final_scores(self._reported, self.config) if last else {}
        if feed is not None:
            per_step = samples / max(1, course.steps)
            columns |= {"samples": samples, "batch_size": round(per_step), "accumulation": feed.accumulate}
        self._row = run_row(
            self.config,
            self._identity,
            optimizer,
            self.device,
            last,
            **columns,
            epochs=epochs,
            start_digest=_together(each["start"] for each in everyone),
            task_hash=self._source,
            model=type(self._kept["model"]).__name__ if "model" in self._kept else None,
            diverged=self._diverged_step is not None,
            diverged_step=self._diverged_step,
            started_at=self._started_at,
        )
        if self._sink is not None and (epoch_rows or last):
            self._sink(epoch_rows, [self._row])
        if not last and everyone[0]["due"]:
            self._save()

    def _too_high(self) -> bool:
        loss = self._reported.get("train_loss")
        loss = self._reported.get("val_loss") if loss is None else loss
        return self.constant_loss is not None and loss is not None and loss > diverged_above(self.constant_loss)

    def _save(self) -> None:
        if self._keeper is None or not self._kept or self._feed is None:
            return
        optimizer = self._built()
        own = {name: thing.state_dict() for name, thing in self._things().items()}
        entries = self._communicator.ledger.entries
        content = {
            "step": self.step,
            "kept": own,
            "optimizer": optimizer.state_dict(),
            "feed": self._feed.state(),
            "generators": generators(),
            "course": self._course.state(),
            "ledger": {name: (entry.bytes, entry.collectives) for name, entry in entries.items()},
            "waits": dict(self._communicator.waits),
            "wall_s": self._wall_before + time.perf_counter() - self._start,
            "started_at": self._started_at.isoformat(),
            "reported": self._reported,
            "schedule_asked": self._schedule_asked,
        }
        self._keeper.save(self.step, content)
        self._saved_at = time.monotonic()

    def _restore(self, feed: BatchFeed) -> None:
        """Load what was saved, once everything is there that it belongs to."""
        saved = self._saved
        if saved is None:
            return
        optimizer, self._saved = self._built(), None
        missing = saved["kept"].keys() - self._things().keys()
        if missing:
            raise ValueError(
                f"the checkpoint of this run holds {', '.join(sorted(missing))}, which the loop did not give run.keep before "
                "run.steps: give it there, or remove the checkpoint to begin anew"
            )
        for phase in self.config.phases():
            if phase.first <= saved["step"]:
                optimizer.t = phase.first - 1
                move_budget(self.config, optimizer, phase)
        for name, state in saved["kept"].items():
            self._things()[name].load_state_dict(state)
        optimizer.load_state_dict(saved["optimizer"])
        feed.restore(saved["feed"])
        self._course.load_state(saved["course"])
        ledger = self._communicator.ledger
        ledger.entries.clear()  # what building it sent was counted before the run was saved
        ledger.entries.update({name: Entry(*counts) for name, counts in saved["ledger"].items()})
        self._communicator.waits = dict(saved["waits"])
        self.step = saved["step"]
        self._wall_before, self._start = saved["wall_s"], time.perf_counter()
        self._started_at = datetime.fromisoformat(saved["started_at"])
        self._reported, self._schedule_asked = saved["reported"], saved["schedule_asked"]
        set_generators(saved["generators"])

    def _things(self) -> dict[str, Any]:
        """What is kept beside the optimizer, the loader and the generators."""
        flat = self._built()
        loader = None if self._feed is None else self._feed.loader
        return {name: each for name, each in self._kept.items() if each is not loader and not _is(each, flat)}

    def _built(self) -> FlatOptimizer:
        if self._optimizer is None:
            raise ValueError(
                "the loop has not called run.optimizer(model.parameters()) yet: training is by that optimizer"
            )
        return self._optimizer


def _is(thing: Any, optimizer: FlatOptimizer) -> bool:
    """Whether it is the optimizer, bare or inside a framework's wrapper; a scheduler, which has it too, is not."""
    if not hasattr(thing, "param_groups"):
        return False
    try:
        return flat_optimizer(thing) is optimizer
    except ValueError:
        return False


def _together(digests: Iterable[str]) -> str:
    """One digest for those of all workers."""
    found = list(digests)
    return hashlib.sha256(" ".join(found).encode()).hexdigest()[:16]


def _seed_everything(seed: int) -> None:
    """For loops that draw from the process's generators: every worker its own numbers, the same ones in every method."""
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 -- what users draw from
    random.seed(seed)


def _arguments(found: Any) -> dict[str, Any]:
    return dict(found) if isinstance(found, Mapping) else {"val_loss": found}


def _number(name: str, value: Any) -> float | None:
    if value is None:
        return None
    try:
        return float(value)
    except (TypeError, ValueError) as error:
        raise ValueError(f"run.report was given {name} = {value!r}: give a number") from error
