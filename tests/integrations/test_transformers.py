"""Hugging Face's Trainer, two workers: nothing but the optimizer communicates, and every worker is saved and resumed."""

import copy
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from cser_ray import CSER
from tests.integrations.wire import counted
from tests.integrations.workers import (
    ARGUMENTS,
    Outcome,
    Whole,
    as_torchrun,
    average,
    check_continued,
    check_sent,
    die,
    kill,
    uninterrupted,
)
from tests.processes import run_processes

transformers = pytest.importorskip("transformers")
integration = pytest.importorskip("cser_ray.integrations.transformers")
STEPS = 10


class Sequences(torch.utils.data.Dataset[Any]):
    """Numbers that count up from a random one, modulo 31."""

    def __len__(self) -> int:
        return 48

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        start = torch.randint(31, (1,), generator=torch.Generator().manual_seed(index))
        ids = (start + torch.arange(8)) % 31
        return {"input_ids": ids, "labels": ids}


class Watched(integration.Trainer):  # type: ignore[misc, name-defined]
    """Keeps what the worker holds at steps 4, 8 and 10; may die while it saves."""

    seen: dict[int, Outcome]
    dies_at: int | None = None

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        assert type(args[0]).__name__ == "GPT2LMHeadModel", "the model is wrapped"
        return super().training_step(*args, **kwargs)

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        self.seen[self.state.global_step] = copy.deepcopy(Outcome.of(self.optimizer))
        super()._maybe_log_save_evaluate(*args, **kwargs)

    def _save_rng_state(self, output_dir: str) -> None:
        if self.state.global_step == self.dies_at and self.args.process_index == 1:
            die()
        super()._save_rng_state(output_dir)


def gpt2(seed: int) -> Any:
    """With tied weights and with dropout."""
    torch.manual_seed(seed)
    config = transformers.GPT2Config(vocab_size=31, n_positions=8, n_embd=8, n_layer=1, n_head=2)
    config.bos_token_id = config.eos_token_id = 0
    return transformers.GPT2LMHeadModel(config)


def trainer(folder: Path, best: bool = False, model: Any = None, **more: Any) -> Watched:
    """On this worker, whose model starts otherwise than the others'."""
    rank = as_torchrun()
    args = transformers.TrainingArguments(
        str(folder),
        use_cpu=True,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2,
        max_steps=STEPS,
        **dict.fromkeys(("save_steps", "eval_steps", "logging_steps"), 4),
        eval_strategy="steps",
        save_total_limit=2,
        average_tokens_across_devices=False,
        weight_decay=0.01,
        load_best_model_at_end=best,
        metric_for_best_model="loss" if best else None,
        greater_is_better=best or None,
        report_to=[],
        disable_tqdm=True,
    )
    arguments = {"optimizer_cls_and_kwargs": (CSER, ARGUMENTS)} | more
    made = Watched(model or gpt2(rank), args, train_dataset=Sequences(), eval_dataset=Sequences(), **arguments)
    made.seen = {}
    return made


def run(folder: Path, resume: bool = False, dies_at: int | None = None) -> Callable[[], dict[str, Any]]:
    def work() -> dict[str, Any]:
        made = trainer(folder)
        made.dies_at = dies_at
        with counted() as sizes:
            made.train(resume_from_checkpoint=resume)
        made.save_model(str(folder / "final"))
        return {
            "seen": made.seen,
            "sizes": sizes,
            "ledger": Outcome.of(made.optimizer).ledger,
            "model": made.model.state_dict(),
            "log": made.state.log_history,
        }

    return work


whole = uninterrupted(run)


def gpt2_at(x: Tensor) -> Any:
    """The model with these parameters."""
    model = gpt2(0)
    decayed = [p for name, p in model.named_parameters() if "bias" not in name and "ln" not in name]
    others = [p for name, p in model.named_parameters() if "bias" in name or "ln" in name]
    optimizer = CSER([{"params": decayed}, {"params": others}], **ARGUMENTS)
    optimizer.x.copy_(x)
    return model


def ends(parts: list[dict[str, Any]], step: int) -> list[Outcome]:
    """What both workers held at a step."""
    return [part["seen"][step] for part in parts]


def test_nothing_but_the_optimizer_sends(whole: Whole) -> None:
    """Every all-reduce is in the ledger, so no DDP averages gradients, and the workers' models differ."""
    for part in whole[1]:
        check_sent(part["sizes"], part["ledger"])
        assert part["ledger"].entries["gradient"].collectives == STEPS


def test_a_killed_run_goes_on_bit_for_bit(whole: Whole, tmp_path: Path) -> None:
    """Killed while it saves step 8, it resumes at step 4, with every worker's model, momentum, scheduler and generator."""
    kill(run, tmp_path, dies_at=8)
    assert (tmp_path / "checkpoint-8" / "model.safetensors").exists(), "half a checkpoint"
    resumed = run_processes(2, run(tmp_path, resume=True), 60)
    assert min(resumed[0]["seen"]) == 5
    check_continued(ends(whole[1], STEPS), ends(resumed, STEPS))
    losses = [[e["eval_loss"] for e in part["log"] if "eval_loss" in e] for part in (whole[1][0], resumed[0])]
    assert losses[0] == losses[1]
    assert len(losses[0]) == 3


def test_evaluation_and_the_saved_model_are_the_average(whole: Whole) -> None:
    """At step 8: what `from_pretrained` loads is the mean of the workers, and eval_loss is what a plain Trainer says of it."""
    folder, parts = whole
    saved = transformers.GPT2LMHeadModel.from_pretrained(folder / "checkpoint-8")
    mean = gpt2_at(average(ends(parts, 8)))
    assert all(torch.equal(p, q) for p, q in zip(saved.parameters(), mean.parameters(), strict=True))

    def plain() -> float:
        as_torchrun()
        args = transformers.TrainingArguments(str(folder / "plain"), use_cpu=True, report_to=[], disable_tqdm=True)
        loss: float = transformers.Trainer(saved, args, eval_dataset=Sequences()).evaluate()["eval_loss"]
        return loss

    (loss,) = run_processes(1, plain, 60)
    logged = next(e["eval_loss"] for e in parts[0]["log"] if "eval_loss" in e and e["step"] == 8)
    assert logged == pytest.approx(loss, rel=1e-5)


def test_after_training_every_worker_has_the_average(whole: Whole) -> None:
    """In the model, and in what `save_model` writes."""
    folder, parts = whole
    mean = gpt2_at(average(ends(parts, STEPS))).state_dict()
    final = transformers.GPT2LMHeadModel.from_pretrained(folder / "final").state_dict()
    for model in (parts[0]["model"], parts[1]["model"], final):
        assert all(torch.equal(mean[name], value) for name, value in model.items())


def test_the_best_model_is_the_average_that_was_best(tmp_path: Path) -> None:
    """With `load_best_model_at_end`, where the greatest loss is the best; and training can go on from there."""

    def work() -> list[float]:
        made = trainer(tmp_path, best=True)
        made.train()
        best, last = made.state.best_metric, [e["eval_loss"] for e in made.state.log_history if "eval_loss" in e][-1]
        found = [best, last, made.evaluate()["eval_loss"]]
        made.train()
        assert made.state.global_step == STEPS
        return found

    one, other = run_processes(2, work, 60)
    best, last, evaluated = one
    assert one == other
    assert best == evaluated
    assert best > last


def test_a_checkpoint_that_is_not_whole_is_refused(whole: Whole, tmp_path: Path) -> None:
    """On every rank, with the reason: no manifest, another number of workers, one that lacks a worker."""
    for name in ("no-manifest", "of-three", "lacking"):
        shutil.copytree(whole[0] / "checkpoint-8", tmp_path / name)
    (tmp_path / "no-manifest" / "cser_ray.json").unlink()
    manifest = json.loads((tmp_path / "of-three" / "cser_ray.json").read_text())
    (tmp_path / "of-three" / "cser_ray.json").write_text(json.dumps(manifest | {"workers": 3}))
    (tmp_path / "lacking" / "cser_ray_rank1.pt").unlink()

    def work() -> list[str]:
        said = []
        for name in ("no-manifest", "of-three", "lacking"):
            with pytest.raises(ValueError, match=r"(?s).") as raised:
                trainer(tmp_path / "out").train(resume_from_checkpoint=str(tmp_path / name))
            said.append(str(raised.value))
        return said

    for manifest, three, lacking in run_processes(2, work, 60):
        assert "no whole checkpoint" in manifest
        assert "of 3 workers, here are 2" in three
        assert "cser_ray_rank1.pt is missing" in lacking


def test_an_optimizer_that_averages_nothing_is_refused(tmp_path: Path) -> None:
    """Without DDP, AdamW would train every worker alone; FSDP and its like, and restarts of one rank, are refused too."""

    def work() -> None:
        with pytest.raises(ValueError, match="AdamW averages nothing"):
            trainer(tmp_path, optimizer_cls_and_kwargs=None).train()

    run_processes(2, work, 60)


def test_the_rate_is_that_of_the_training_arguments(tmp_path: Path) -> None:
    """Unless the optimizer's own arguments have one."""

    def work() -> list[float]:
        given = {name: value for name, value in ARGUMENTS.items() if name != "lr"}
        return [
            trainer(tmp_path, optimizer_cls_and_kwargs=(CSER, each)).create_optimizer().defaults["lr"]
            for each in (given, given | {"lr": 0.25})
        ]

    assert run_processes(1, work, 60) == [[5e-5, 0.25]]


def test_an_optimizer_that_was_built_before_the_trainer_trains_its_model(tmp_path: Path) -> None:
    """As an own loop's is: the same models as with one that the Trainer builds, on groups of the same parameters."""

    def work() -> tuple[Tensor, Tensor]:
        built = trainer(tmp_path / "built")
        built.train()
        model = gpt2(0)
        decayed = built.get_decay_parameter_names(model)
        groups: list[dict[str, Any]] = [
            {"params": [p for name, p in model.named_parameters() if (name in decayed) is yes], "weight_decay": decay}
            for yes, decay in ((True, built.args.weight_decay), (False, 0.0))
        ]
        optimizer = CSER(groups, **{"lr": built.args.learning_rate, **ARGUMENTS})
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / STEPS)
        given = trainer(
            tmp_path / "given", model=model, optimizer_cls_and_kwargs=None, optimizers=(optimizer, scheduler)
        )
        given.train()
        one, other = (torch.cat([p.detach().flatten() for p in each.model.parameters()]) for each in (built, given))
        return one, other

    for one, other in run_processes(2, work, 120):
        assert torch.equal(one, other)
