"""What a loop of the user's receives: an optimizer, steps, batches, reports, and whatever else happens between processes."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from cser_ray.own_loop import Run
from cser_ray.own_loop.dry import parameters_of
from cser_ray.own_loop.feed import BatchFeed
from cser_ray.store.rows import EpochRow, RunRow
from tests.own_loop.loops import data, make_run, network, plain, row_of
from tests.processes import run_processes


def test_a_loop_trains_and_its_row_says_what_it_did() -> None:
    """Steps, samples, evaluations and bytes are counted; both workers have the same row up to clocks."""
    one, two = row_of(plain, "csea")
    assert (one.status, one.diverged, one.steps_done, one.samples, one.batch_size) == ("FINISHED", False, 16, 64, 4)
    assert (one.evaluations_done, one.evaluated_at, one.n_params) == (4, "4,8,12,16", 6 * 8 + 8 + 8 * 2 + 2)
    assert one.realised_ratio == pytest.approx(4, rel=0.2)  # 74 values in blocks
    assert (one.rate_first, one.rate_last) == (1.0, pytest.approx(0.2**3))
    assert (one.val_loss, one.start_digest, one.rates_digest) == (two.val_loss, two.start_digest, two.rates_digest)
    assert one.test_loss == one.val_loss == one.test_acc  # no test split was reported
    assert one.weight_decay == 0.01


def test_steps_are_whole_intervals() -> None:
    """A run ends with a reset: local SGD at R_C = 4 takes 12 steps where 10 are asked for."""
    assert {row.steps_done for row in row_of(plain, "local-sgd", steps=10, evaluations=2)} == {12}


def test_rank_0_alone_may_report() -> None:
    """The others wait for nobody, and all have the row; also where it reports at a step that is not due."""

    def loop(run: Run) -> None:
        loader, inputs, targets = data(run)
        model = network(run)
        optimizer = run.optimizer(model.parameters())
        for step, (x, y) in run.steps(loader):
            nn.functional.mse_loss(model(x), y).backward()
            optimizer.step()
            optimizer.zero_grad()
            if run.evaluation_due(step):
                with optimizer.averaged_parameters(), torch.no_grad():
                    loss = nn.functional.mse_loss(model.eval()(inputs), targets).item()
                model.train()
            if run.worker == 0 and (run.evaluation_due(step) or step == 5):
                run.report(val_loss=loss, test_loss=2 * loss)

    one, two = row_of(loop)
    assert one.val_loss == two.val_loss is not None
    assert one.test_loss == 2 * one.val_loss
    assert one.evaluated_at == "4,5,8,12,16"


def test_reports_of_all_workers_are_averaged() -> None:
    """Of each number and each metric, the mean over those who gave it."""
    found: list[Any] = []

    def loop(run: Run) -> None:
        model = nn.Linear(2, 1)
        optimizer = run.optimizer(model.parameters())
        for step, _ in run.steps([torch.ones(1, 2) * (1 + run.worker)]):
            model(torch.ones(1, 2) * (1 + run.worker)).sum().backward()
            optimizer.step()
            optimizer.zero_grad()
            own = {"accuracy": 90.0} if run.worker else None
            run.report(val_loss=float(step * (1 + run.worker)), metrics=own)

    def worker() -> tuple[RunRow, list[EpochRow]]:
        run = make_run("sgd", steps=2, evaluations=1, sink=lambda epochs, rows: found.extend(epochs))
        loop(run)
        return run.finish(), found

    for row, epochs in run_processes(2, worker):
        assert (row.val_loss, row.metrics) == (3.0, '{"accuracy": 90.0}')
        assert [(each.step, each.val_loss, each.evaluation) for each in epochs] == [(1, 1.5, 0), (2, 3.0, 1)]


def test_what_is_reported_after_the_last_step_belongs_to_its_evaluation() -> None:
    """A test loss measured once, behind the loop, is no evaluation more."""

    def loop(run: Run) -> None:
        model = nn.Linear(2, 1)
        optimizer = run.optimizer(model.parameters())
        for step, x in run.steps([torch.ones(1, 2)]):
            model(x).sum().backward()
            optimizer.step()
            if run.evaluation_due(step):
                run.report(val_loss=float(step), metrics={"accuracy": 50.0})
        run.report(val_loss=2.0, test_loss=9.0)

    (row,) = row_of(loop, "sgd", workers=1, steps=4, evaluations=2)
    assert (row.evaluated_at, row.val_loss, row.test_loss, row.metrics) == ("2,4", 2.0, 9.0, '{"accuracy": 50.0}')


def test_the_floor_has_the_workers_own_line() -> None:
    """`evaluate` measures each worker's own model of a method that never communicates, and the models' distance."""
    silent, talking = row_of(plain, "no-sync")[0], row_of(plain, "csea")[0]
    assert silent.val_loss_worker is not None
    assert silent.test_acc_worker == silent.test_loss_worker != silent.val_loss
    assert silent.consensus_distance is not None
    assert talking.val_loss_worker is None
    assert talking.consensus_distance is not None
    assert silent.consensus_distance > talking.consensus_distance > 0


def test_the_metric_to_compare_by() -> None:
    """It is in the columns of the metric, with its direction; a loop that does not report it is told so."""

    def loop(run: Run) -> None:
        model = nn.Linear(2, 1)
        optimizer = run.optimizer(model.parameters())
        for step, x in run.steps([torch.ones(1, 2)]):
            model(x).sum().backward()
            optimizer.step()
            run.report(val_loss=1.0, metrics={"R²": 0.5 + step / 10})

    (row,) = row_of(loop, "sgd", workers=1, steps=2, evaluations=1, compare_by="R²")
    assert (row.metric, row.metric_maximise, row.val_acc, row.test_acc) == ("R²", True, 0.7, 0.7)
    with pytest.raises(ValueError, match=r"compare_by names error, and run\.report was given none of that name"):
        row_of(loop, "sgd", workers=1, steps=2, evaluations=1, compare_by="error:min")


def test_a_loss_that_is_not_finite_ends_the_run_everywhere() -> None:
    """As a result: the run is finished, and diverged at that step."""

    def loop(run: Run) -> None:
        model = nn.Linear(2, 1)
        optimizer = run.optimizer(model.parameters())
        for step, _ in run.steps([torch.ones(1, 2)]):
            (model(torch.ones(1, 2)) * (1 + run.worker)).sum().backward()
            optimizer.step()
            if run.evaluation_due(step):
                run.report(val_loss=math.nan if step >= 8 and run.worker else 1.0)

    for row in row_of(loop, "csea"):
        assert (row.status, row.diverged, row.diverged_step, row.steps_done) == ("FINISHED", True, 8, 8)


def killed(folder: Path, at: int, method: str, **settings: Any) -> None:
    """A run that ends in the middle of a step, after the step `at`."""

    def worker() -> None:
        try:
            plain(make_run(method, folder, **settings), stop=at)
        except KeyboardInterrupt:
            return

    run_processes(2, worker)


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        ("csea", {}),
        ("cser", {"reset_interval": 4}),
        ("diloco", {"inner": "adamw"}),
        ("csea", {"ratio_schedule": "dense-start"}),
    ],
)
def test_a_killed_run_goes_on_bit_by_bit(tmp_path: Path, method: str, settings: dict[str, Any]) -> None:
    """Losses of the steps after it, and the row, are those of a run that nobody killed: batches, dropout, rates and all."""

    def losses(folder: Path | None) -> Any:
        def worker() -> tuple[list[float], dict[str, Any], bool]:
            seen: list[float] = []
            run = make_run(method, folder, **settings)
            plain(run, seen)
            row = run.finish()
            names = ("val_loss", "rates_digest", "rate_mean", "samples", "bytes_sent", "evaluated_at", "start_digest")
            return seen, {name: getattr(row, name) for name in names}, run.resumed

        return run_processes(2, worker)

    whole = losses(None)
    killed(tmp_path, 9, method, **settings)
    resumed = losses(tmp_path)
    for (seen, row, _), (again, row_again, went_on) in zip(whole, resumed, strict=True):
        assert went_on
        assert again == seen[8:]
        assert row_again == row
    assert not list((tmp_path / "checkpoints").rglob("*.pt"))  # of an ended run none is kept


def test_a_loader_with_a_state_of_its_own_is_not_read_again() -> None:
    """torch's stateful protocol: its state is saved, loaded, and nothing is dropped."""

    class Stateful:
        def __init__(self) -> None:
            self.at, self.read = 0, 0

        def __iter__(self) -> Any:
            while self.at < 10:
                self.at, self.read = self.at + 1, self.read + 1
                yield torch.full((1,), float(self.at))
            self.at = 0

        def state_dict(self) -> dict[str, int]:
            return {"at": self.at}

        def load_state_dict(self, state: dict[str, int]) -> None:
            self.at = state["at"]

    first = BatchFeed(Stateful())
    assert [first.next().item() for _ in range(7)] == [1, 2, 3, 4, 5, 6, 7]
    loader = Stateful()
    second = BatchFeed(loader)
    second.restore(first.state())
    assert [second.next().item() for _ in range(5)] == [8, 9, 10, 1, 2]
    assert loader.read == 5


def test_an_exhausted_loader_is_begun_anew_in_another_order() -> None:
    """Its sampler is told the pass; an iterator, which cannot begin again, is refused."""
    passes: list[int] = []

    class Sampler(torch.utils.data.SequentialSampler):
        def set_epoch(self, epoch: int) -> None:
            passes.append(epoch)

    samples = torch.utils.data.TensorDataset(torch.arange(3.0))
    feed = BatchFeed(torch.utils.data.DataLoader(samples, 1, sampler=Sampler(samples)), accumulate=2)
    assert [[x.item() for (x,) in feed.next()] for _ in range(3)] == [[0, 1], [2, 0], [1, 2]]
    assert (passes, feed.samples, feed.passes) == ([0, 1], 6, 2.0)
    with pytest.raises(ValueError, match="an iterator that cannot begin again"):
        [feed.next() for feed in [BatchFeed(iter([1]))] * 2]
    with pytest.raises(ValueError, match="holds no batch"):
        BatchFeed([]).next()


def test_a_loop_of_a_frameworks_own_is_followed() -> None:
    """Without `run.steps` the processes meet before the step after one that is due, and at the end."""

    def loop(run: Run) -> None:
        model = nn.Linear(3, 1)
        optimizer = run.optimizer(model.parameters())
        x = torch.ones(2, 3) * (1 + run.worker)
        for step in range(1, run.steps_total + 1):
            model(x).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
            assert run.step == step
            if run.evaluation_due(step) and run.worker == 0:
                run.report(val_loss=float(step))

    for row in row_of(loop, "local-sgd", steps=8, evaluations=2, ratio_schedule="dense-start"):
        assert (row.steps_done, row.evaluated_at, row.val_loss, row.status) == (8, "4,8", 8.0, "FINISHED")
        assert (row.samples, row.batch_size) == (None, 0)
        assert row.realised_ratio == pytest.approx(4)


def test_groups_and_what_is_fixed() -> None:
    """Rates of groups are multiples of the trial's; what is the trial's is refused, and so is a second optimizer."""
    run = make_run("csea", lr=0.2)
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
    groups = [
        {"params": model[0].parameters()},
        {"params": model[1].parameters(), "lr_scale": 0.5, "weight_decay": 0.0},
    ]
    optimizer = run.optimizer(groups, weight_decay=0.3)
    assert [(group["lr"], group["weight_decay"]) for group in optimizer.param_groups] == [(0.2, 0.3), (0.1, 0.0)]
    with pytest.raises(ValueError, match="one optimizer"):
        run.optimizer(model.parameters())
    with pytest.raises(ValueError, match=r"no argument of run.optimizer 'lr'.*The rest is the trial's"):
        make_run().optimizer(model.parameters(), lr=0.1)
    with pytest.raises(ValueError, match="lr_scale"):
        make_run().optimizer([{"params": model.parameters(), "lr": 0.1}])


def test_a_budget_is_solved_for_the_real_model() -> None:
    """Top-k's whole chunks send what the ratio says, of a model that no task knows."""

    def loop(run: Run) -> None:
        model = nn.Linear(300, 40)
        optimizer = run.optimizer(model.parameters())
        for step, x in run.steps([torch.randn(2, 300, generator=torch.Generator().manual_seed(run.worker))]):
            model(x).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
            if run.evaluation_due(step):
                run.report(val_loss=1.0)

    row = row_of(loop, "ef-sgd", ratio=16.0, compressor="top-k/4096", lr=1e-3)[0]
    assert row.n_params == 300 * 40 + 40
    assert row.realised_ratio == pytest.approx(16, rel=0.02)


def test_a_dry_start_counts_the_model() -> None:
    """It goes as far as run.optimizer, in a process of its own kind, with as many workers as are asked for."""
    config = make_run().config
    assert parameters_of(config) == 6 * 8 + 8 + 8 * 2 + 2


def test_a_schedule_that_the_loop_ignores_is_refused() -> None:
    """A warm-up was asked for, and nobody asked for its factor."""

    def loop(run: Run) -> None:
        model = nn.Linear(2, 1)
        optimizer = run.optimizer(model.parameters())
        for _, x in run.steps([torch.ones(1, 2)]):
            model(x).sum().backward()
            optimizer.step()
            run.report(val_loss=1.0)

    with pytest.raises(ValueError, match=r"the loop never called run\.lr_factor"):
        row_of(loop, "sgd", workers=1, steps=2, evaluations=1, warmup_steps=1)


def test_a_loop_that_says_nothing_is_told_what_to_say() -> None:
    """Without a report there is nothing to choose by; without an optimizer, nothing to compare."""

    def silent(run: Run) -> None:
        optimizer = run.optimizer(nn.Linear(2, 1).parameters())
        for _ in run.steps([torch.ones(1, 2)]):
            optimizer.step()

    with pytest.raises(ValueError, match=r"reported nothing: call run\.report"):
        row_of(silent, workers=1)
    with pytest.raises(ValueError, match=r"has not called run\.optimizer"):
        row_of(lambda run: None, workers=1)


def test_alone_a_loop_prints_its_reports(capsys: pytest.CaptureFixture[str]) -> None:
    """`Run.alone` needs no study and no Ray."""
    run = Run.alone(method="csea", ratio=4.0, steps=8, evaluations=2)
    plain(run)
    assert run.finish().steps_done == 8
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == ["step 4", "step 8"]
