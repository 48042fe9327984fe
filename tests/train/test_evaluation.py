"""Evaluation at the mean model: by hand, and the same over processes."""

import copy
import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from cser_ray.communication.communicator import Communicator
from cser_ray.config import RunConfig
from cser_ray.optimizers import NoSync, Placement
from cser_ray.tasks import make_task
from cser_ray.tasks.base import Splits, TensorDataset
from cser_ray.tasks.mlp import batchnorm_mlp
from cser_ray.tasks.objective import objective_of
from cser_ray.train import evaluation
from cser_ray.train.evaluation import Evaluator
from cser_ray.train.shards import Shards
from cser_ray.train.stack import Stack
from cser_ray.virtual import VirtualWorkers, evaluate_rows
from tests.processes import run_processes

CPU = torch.device("cpu")
N, SEEDS = 2, (1, 2)


def data(samples: int) -> TensorDataset:
    """Samples of two classes with 3 features."""
    generator = torch.Generator().manual_seed(samples)
    inputs = torch.randn(samples, 3, generator=generator, dtype=torch.float64)
    return TensorDataset(inputs, (inputs.sum(1) > 0).long())


SPLITS = Splits(data(40), data(21), data(33))


def linear() -> nn.Module:
    """3 features, 2 classes."""
    return nn.Linear(3, 2).double()


def evaluator(modules: Sequence[nn.Module], splits: Splits = SPLITS, seeds: tuple[int, ...] = SEEDS) -> Evaluator:
    """Of rows [runs, workers], whose models stay those of `modules`."""
    communicator = Communicator(len(modules) // len(seeds), group=None)
    workers = VirtualWorkers(modules)
    optimizer = NoSync(workers.parameters.values(), placement=Placement(communicator, seeds, stacked=True))
    with torch.no_grad():  # construction began all workers of a run at worker 0's parameters
        for name, p in workers.parameters.items():
            p.copy_(torch.stack([dict(module.named_parameters())[name] for module in modules]))
    shards = Shards(len(splits.train), communicator.size, 4, seeds, communicator.worker_ids)
    return Evaluator(workers, optimizer, splits, shards, communicator, CPU, objective_of(make_task("digits")))


def differing(make=linear, rows: int = 4) -> list[nn.Module]:
    """Modules, each initialised apart."""
    modules = []
    for row in range(rows):
        torch.manual_seed(row)
        modules.append(make())
    return modules


def test_the_mean_is_over_workers_not_runs() -> None:
    """Each run's mean model is the mean of its own workers' parameters."""
    modules = differing()
    parameters, _, _ = evaluator(modules).mean_model()
    for run in range(2):
        own = modules[2 * run : 2 * run + 2]
        torch.testing.assert_close(parameters["weight"][run], (own[0].weight + own[1].weight).detach() / 2)


def test_evaluation_changes_nothing() -> None:
    """Parameters, buffers and optimizer state are bit for bit what they were: the mean is never written back."""
    of = evaluator(differing(lambda: batchnorm_mlp(3, 4, 2).double()))
    before = copy.deepcopy((dict(of.workers.parameters), of.workers.buffers, of.optimizer.state_dict()["state"]))
    parameters, buffers, _ = of.mean_model()
    of.score(parameters, buffers, "validation")
    of.own_models("test")
    after = (dict(of.workers.parameters), of.workers.buffers, of.optimizer.state_dict()["state"])
    torch.testing.assert_close(after, before, rtol=0, atol=0)


def test_consensus_distance_by_hand() -> None:
    """(1/n) sum ||x_i - mean||^2 / ||mean||^2: workers at (2, 0) and (2, 2) are 1 from (2, 1), so 1/5."""
    modules = [nn.Linear(2, 1, bias=False).double() for _ in range(4)]
    for module, weight in zip(modules, ([2, 0], [2, 2], [3, 4], [3, 4]), strict=True):
        with torch.no_grad():
            module.weight.copy_(torch.tensor([weight]))
    inputs = torch.zeros(20, 2, dtype=torch.float64)
    dataset = TensorDataset(inputs, torch.zeros(20, dtype=torch.int64))
    *_, distance = evaluator(modules, Splits(dataset, dataset, dataset)).mean_model()
    assert distance.tolist() == pytest.approx([0.2, 0.0])


def test_batchnorm_statistics_are_those_of_a_plain_module() -> None:
    """Workers with equal parameters: the mean of the statistics that a plain module with momentum 1 has on each shard.

    Statistics that the workers had before, here nonsense, do not matter.
    """
    torch.manual_seed(0)
    module = batchnorm_mlp(3, 4, 2).double()
    of = evaluator([module] * 4)
    for buffer in of.workers.buffers.values():
        buffer.fill_(9)
    _, buffers, _ = of.mean_model()
    shards = Shards(40, N, 4, SEEDS, range(N)).calibration(evaluation.CALIBRATION).view(2, N, -1)
    for run in range(2):
        statistics: dict[str, list[Tensor]] = {"1.running_mean": [], "1.running_var": []}
        for samples in shards[run]:
            plain = copy.deepcopy(module).train()
            plain[1].momentum = 1.0
            plain(SPLITS.train.batch(samples[None])[0][0])
            for name, seen in statistics.items():
                seen.append(plain.state_dict()[name])
        for name, seen in statistics.items():
            torch.testing.assert_close(buffers[name][run], torch.stack(seen).mean(0))


def test_the_score_is_the_mean_models_loss_and_accuracy() -> None:
    """Cross-entropy in nats and percent right, by hand, on all samples of a split."""
    modules = differing()
    of = evaluator(modules)
    parameters, buffers, _ = of.mean_model()
    score = of.score(parameters, buffers, "test")
    inputs, targets = SPLITS.test.inputs, SPLITS.test.targets
    for run in range(2):
        logits = inputs @ parameters["weight"][run].T + parameters["bias"][run]
        assert score.loss[run].item() == pytest.approx(nn.functional.cross_entropy(logits, targets).item())
        assert score.metric[run].item() == pytest.approx(100 * (logits.argmax(1) == targets).double().mean().item())


def test_the_score_does_not_depend_on_the_size_of_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """33 samples at once or in fives."""
    of = evaluator(differing())
    parameters, buffers, _ = of.mean_model()
    whole, ensembles = of.score(parameters, buffers, "test"), of.own_models("test")
    monkeypatch.setattr(evaluation, "CHUNK", 5)
    torch.testing.assert_close(of.score(parameters, buffers, "test").loss, whole.loss)
    torch.testing.assert_close(of.own_models("test"), ensembles)


def test_training_loss_is_read_on_the_first_samples_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """A large training split costs no more than `TRAINING_SAMPLES`; validation is read whole."""
    of = evaluator(differing())
    parameters, buffers, _ = of.mean_model()
    monkeypatch.setattr(evaluation, "TRAINING_SAMPLES", 7)
    first = TensorDataset(SPLITS.train.inputs[:7], SPLITS.train.targets[:7])
    expected = evaluator(differing(), Splits(SPLITS.train, first, first)).score(parameters, buffers, "validation")
    torch.testing.assert_close(of.score(parameters, buffers, "train").loss, expected.loss)


def test_workers_own_models_and_their_ensemble() -> None:
    """Own: the mean over workers. Ensemble: accuracy and loss of the mean of their probabilities."""
    modules = differing()
    own, ensemble = evaluator(modules).own_models("test")
    inputs, targets = SPLITS.test.inputs, SPLITS.test.targets
    for run in range(2):
        logits = torch.stack([module(inputs) for module in modules[2 * run : 2 * run + 2]])
        each = (logits.argmax(-1) == targets).double().mean()
        together = (logits.softmax(-1).mean(0).argmax(-1) == targets).double().mean()
        assert own.metric[run].item() == pytest.approx(100 * each.item())
        assert ensemble.metric[run].item() == pytest.approx(100 * together.item())
        each_loss = [nn.functional.cross_entropy(one, targets).item() for one in logits]
        assert own.loss[run].item() == pytest.approx(sum(each_loss) / 2)
        together_loss = nn.functional.nll_loss(logits.softmax(-1).mean(0).log(), targets)
        assert ensemble.loss[run].item() == pytest.approx(together_loss.item())


def test_an_ensemble_averages_probabilities_not_votes() -> None:
    """A sure worker outvotes two that doubt: of three workers on one sample, one is certain of the right class."""
    modules = []
    for bias in ([0.0, 9.0], [0.1, 0.0], [0.1, 0.0]):
        module = nn.Linear(1, 2).double()
        with torch.no_grad():
            module.weight.zero_()
            module.bias.copy_(torch.tensor(bias))
        modules.append(module)
    one = TensorDataset(torch.zeros(12, 1, dtype=torch.float64), torch.ones(12, dtype=torch.int64))
    own, ensemble = evaluator(modules, Splits(one, one, one), seeds=(1,)).own_models("test")
    assert own.metric.tolist() == pytest.approx([100 / 3])
    assert ensemble.metric.tolist() == [100.0]


def test_first_only_is_worker_0() -> None:
    """The cheap look on the way: worker 0 of each run by itself."""
    modules = differing()
    own, ensemble = evaluator(modules).own_models("test", first_only=True)
    for run in range(2):
        right = modules[2 * run](SPLITS.test.inputs).argmax(1) == SPLITS.test.targets
        assert own.metric[run].item() == pytest.approx(100 * right.double().mean().item())
    assert torch.equal(own.metric, ensemble.metric)


def test_a_frozen_parameter_is_part_of_the_mean_model() -> None:
    """It is not in the optimizer's vector, and the mean model has it all the same."""
    modules = [nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)).double() for _ in range(4)]
    for module in modules:
        module[0].load_state_dict(modules[0][0].state_dict())
        module[0].requires_grad_(False)
    of = evaluator(modules)
    parameters, buffers, _ = of.mean_model()
    assert list(parameters) == [name for name, _ in modules[0].named_parameters()]
    torch.testing.assert_close(parameters["0.weight"][1], modules[0][0].weight)
    assert math.isfinite(of.score(parameters, buffers, "test").loss.sum())


def test_a_run_that_is_no_longer_finite_does_not_spoil_the_others() -> None:
    """The score and the consensus distance of a stacked run stand by themselves."""
    modules = differing()
    alone = evaluator(modules[:2], seeds=(1,))
    with torch.no_grad():
        modules[3].weight.fill_(math.nan)
    of = evaluator(modules)
    parameters, buffers, distance = of.mean_model()
    score = of.score(parameters, buffers, "test")
    torch.testing.assert_close(score.loss[:1], alone.score(*alone.mean_model()[:2], "test").loss)
    assert distance[0].isfinite()
    assert not distance[1].isfinite()
    assert not score.loss[1].isfinite()


def measure(processes: int) -> dict[str, object]:
    """Everything an evaluation gives after 5 steps of digits, and the ledger."""
    communicator = Communicator(4 // processes, group=None if processes == 1 else "default")
    configs = [
        RunConfig(method="cser-pl", reset_interval=2, reset_ratio=4, workers=4, steps=6, repeat=k, dtype="float64")
        for k in range(2)
    ]
    stack = Stack(configs, communicator, CPU)
    for _ in range(5):
        stack.step()
    parameters, buffers, distance = stack.evaluator.mean_model()
    scores = {split: stack.evaluator.score(parameters, buffers, split) for split in ("train", "validation", "test")}
    return {
        "parameters": parameters,
        "statistics": {name: b for name, b in buffers.items() if b.is_floating_point()},
        "distance": distance,
        "scores": {split: (score.loss, score.metric) for split, score in scores.items()},
        "own": stack.evaluator.own_models("validation"),
        "first": stack.evaluator.own_models("validation", first_only=True),
        "ledger": {name: (e.bytes, e.collectives) for name, e in communicator.ledger.entries.items()},
    }


def test_two_processes_evaluate_as_one() -> None:
    """Each evaluates its share of the samples; every number and every byte is that of one process, on both ranks."""
    expected = measure(1)
    for found in run_processes(2, lambda: measure(2)):
        assert found.pop("ledger") == expected["ledger"]
        torch.testing.assert_close(found, {k: v for k, v in expected.items() if k != "ledger"}, rtol=1e-9, atol=1e-9)


def test_evaluation_stands_outside_the_ratio() -> None:
    """It is charged under names of its own, and R_C's bytes are as before."""
    of = evaluator(differing(lambda: batchnorm_mlp(3, 4, 2).double()))
    parameters, buffers, _ = of.mean_model()
    of.score(parameters, buffers, "test")
    of.own_models("test")
    ledger = of.communicator.ledger
    assert set(ledger.entries) == {"start", "evaluation", "batchnorm"}
    assert ledger.total(in_ratio=True).bytes == 0


def test_text_stays_whole_numbers() -> None:
    """Symbols are not turned into the models' precision: an embedding looks them up."""
    modules = [nn.Embedding(5, 2).double() for _ in range(2)]
    text = TensorDataset(torch.randint(5, (10, 3)), torch.ones(10, 3, dtype=torch.int64))
    of = evaluator(modules, Splits(text, text, text), seeds=(1,))
    parameters, buffers, _ = of.mean_model()
    score = of.score(parameters, buffers, "test")
    outputs = evaluate_rows(modules[0], parameters, buffers, text.inputs)
    expected = nn.functional.cross_entropy(outputs[0].flatten(0, 1), text.targets.flatten())
    assert score.loss.item() == pytest.approx(expected.item())
