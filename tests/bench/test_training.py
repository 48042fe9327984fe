"""What is measured really trains, and jumps land where they should; two gloo processes."""

from collections.abc import Callable

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from cser_ray.bench.hosts.namespaces import counter
from cser_ray.bench.links.cases import Case, make_cases
from cser_ray.bench.links.measuring import Rank, make_baseline, measure_phases
from cser_ray.bench.links.peers import PEERS
from cser_ray.bench.links.training import Training, build_optimizer, check_case, ours
from cser_ray.bench.links.windows import Phase
from cser_ray.bench.workloads import MODELS, Workload, check_workload, make_workload
from tests.processes import run_processes

RATIOS = {name: peer.takes_ratio for name, peer in PEERS.items()}


def case(method: str, ratio: float) -> Case:
    """The case of a method at a ratio."""
    (found,) = (each for each in make_cases([method], [ratio], RATIOS) if each.method == method.partition("+")[0])
    return found


def small() -> Workload:
    """A linear model and data of this rank's own."""
    torch.manual_seed(0)
    model = torch.nn.Linear(7, 3)
    generator = torch.Generator().manual_seed(dist.get_rank() if dist.is_initialized() else 0)
    return Workload(model, torch.randn(5, 7, generator=generator), torch.randint(3, (5,), generator=generator))


def recorded(build: Callable[[Workload], Training]) -> tuple[Training, Callable[[], Tensor]]:
    """The training, and how its model differs from rank 0's."""
    models: list[torch.nn.Module] = []

    class Kept(Workload):
        def fresh(self) -> torch.nn.Module:
            models.append(super().fresh())
            return models[-1]

    workload = small()
    training = build(Kept(workload.template, workload.inputs, workload.targets))

    def difference() -> Tensor:
        mine = torch.cat([p.detach().flatten() for p in models[-1].parameters()])
        first = mine.clone()
        dist.broadcast(first, 0)
        apart = (mine - first).abs().max()
        dist.all_reduce(apart, op=dist.ReduceOp.MAX)
        return apart

    return training, difference


@pytest.mark.parametrize("name", [name for name in PEERS if name not in ("torch-local", "torchft-diloco")])
def test_a_peer_makes_its_replicas_equal_when_it_synchronises(name: str) -> None:
    """From data of their own, two ranks come to one model at the end of an interval, and to none before its end."""

    def train() -> tuple[float, float, float]:
        training, difference = recorded(lambda workload: PEERS[name].build(case(name, 4), workload))
        training.run(2 * training.interval)
        apart = difference().item()
        before = training.collectives() if training.collectives else 0.0
        training.run(training.interval)
        rounds = training.collectives() - before if training.collectives else 0.0
        training.run(training.interval - 1)
        return apart, difference().item(), rounds / training.interval

    for apart, later, rounds in run_processes(2, train):
        assert apart < 1e-6
        assert (later > 1e-6) == (name == "post-local-sgd")  # accumulation steps only when it synchronises
        assert rounds == {"post-local-sgd": 0.25, "ddp-bf16-accumulate4": 0.25}.get(
            name, 3.0 if "power" in name else 1.0
        )


def test_torch_local_never_synchronises() -> None:
    """The row without communication has none."""

    def train() -> float:
        training, difference = recorded(lambda workload: PEERS["torch-local"].build(case("torch-local", 1), workload))
        training.run(3)
        return difference().item()

    assert min(run_processes(2, train)) > 1e-6


@pytest.mark.parametrize("name", ["local-sgd", "post-local-sgd"])
def test_a_jump_leads_to_the_step_that_synchronises(name: str) -> None:
    """After moving on to the end of a long interval, the next step is the one that averages, and only that one."""

    def train() -> tuple[float, float, float]:
        build = PEERS[name].build if name in PEERS else ours
        training, difference = recorded(lambda workload: build(case(name, 1000), workload))
        training.run(3)
        before = difference().item()
        training.move_on(999)
        training.run(1)
        at = difference().item()
        assert training.collectives
        training.run(5)
        return before, at, training.collectives()

    for before, at, collectives in run_processes(2, train):
        assert before > 1e-6
        assert at < 1e-6
        assert collectives == 1


def measured(each: Case) -> list[Phase]:
    """The phases of a case, 40 steps and more, over the loopback interface."""
    rank, workload = Rank(torch.device("cpu"), counter("lo"), seconds=0.01, steps=40), small()
    return measure_phases(ours(each, workload), make_baseline(ours(case("no-sync", 1), workload), rank), rank)


def test_phases_hold_whole_intervals_or_two_kinds_of_steps() -> None:
    """A short interval is measured whole; a long one apart, where all that is sent is sent around its end."""

    for (whole,) in run_processes(2, lambda: measured(case("local-sgd", 8))):
        assert whole.steps % 8 == 0
        assert len(whole.local_seconds) == len(whole.seconds)
        assert whole.steps * len(whole.seconds) >= 40
        assert whole.collectives == whole.counted_steps / 8
        assert whole.ledger_bytes == whole.collectives * 24 * 4  # 24 parameters, n = 2
    for ordinary, around in run_processes(2, lambda: measured(case("local-sgd", 500))):
        assert (ordinary.collectives, around.collectives) == (0, around.counted_steps)
        assert around.steps == 1
        assert ordinary.steps * len(ordinary.seconds) >= 40


def test_a_delayed_reset_is_measured_until_it_arrives() -> None:
    """The windows around the end of a long interval last until the average has been applied."""

    long = Case("cser-pl", 4000.0, 1000, 4.0, float("inf"), 3)
    for _, around in run_processes(2, lambda: measured(long)):
        assert around.steps == 4
        assert around.collectives == around.counted_steps / 4


def test_a_delayed_method_has_no_head_start() -> None:
    """Before each window as many steps are led in as resets are under way in the middle of a run."""
    for (phase,) in run_processes(2, lambda: measured(case("csea+delay4", 8))):
        assert phase.counted_steps == (phase.steps + 4) * len(phase.seconds)
        assert phase.collectives == phase.counted_steps


def test_a_delay_is_given_to_the_optimizer() -> None:
    """And a method that has none says so, before any process is started."""
    assert build_optimizer(case("csea+delay4", 8), torch.nn.Linear(7, 3)).reset_delay == 4  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match="ef-sgd takes no reset_delay"):
        check_case(case("ef-sgd+delay2", 8))


@pytest.mark.parametrize("name", [name for name in MODELS if name != "transformer-85m"])  # 18 s for another size
def test_every_workload_has_gradients(name: str) -> None:
    """A backward pass reaches every parameter of a fresh model and leaves the template as it was."""
    workload = make_workload(name, torch.device("cpu"), rank=0)
    model = workload.fresh()
    workload.backward(model)
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert all(p.grad is None for p in workload.template.parameters())


def test_ranks_share_the_model_and_not_the_data() -> None:
    """The template is drawn from one seed, the batch from the rank's."""
    one, two = (make_workload("pytext", torch.device("cpu"), rank) for rank in (0, 1))
    assert all(torch.equal(a, b) for a, b in zip(one.template.parameters(), two.template.parameters(), strict=True))
    assert not torch.equal(one.inputs, two.inputs)


def test_the_mlp_is_as_large_as_the_documents_say() -> None:
    """2.1 M parameters, 8.44 MB."""
    assert make_workload("mlp", torch.device("cpu"), rank=0).params * 4 == pytest.approx(8.44e6, rel=1e-3)


def test_an_unknown_model_is_refused_before_any_process_starts() -> None:
    """By name, with one that exists."""
    check_workload("wrn-40-8")
    with pytest.raises(ValueError, match="did you mean resnet50"):
        check_workload("resnet5o")
