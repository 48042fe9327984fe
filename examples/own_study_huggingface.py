"""A study of a loop that a framework owns: Hugging Face's Trainer, and a small GPT-2 on the source of Python's library.

    cser-ray tune --loop own_study_huggingface:train_loop --inner adamw --methods adamw,no-sync-adamw,local-sgd,csea \\
        --ratios 64 --steps 256 --schedule cosine --warmup-steps 16 --workers 2 --compare-by perplexity:min

from this folder; `python own_study_huggingface.py --out results/huggingface` is the same from Python, and `torchrun
--nproc-per-node 2 own_study_huggingface.py --try` one run without a study. It needs the extra `transformers`, and
downloads nothing: put `AutoModelForCausalLM.from_pretrained(...)` in place of the model to fine-tune one that you have.
"""

import argparse
import difflib
import inspect
import math
import optparse
import pickle
import subprocess
import tarfile
import tempfile
import typing
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR
from transformers import GPT2Config, GPT2LMHeadModel, PrinterCallback, TrainerCallback, TrainingArguments

from cser_ray.integrations.transformers import Trainer
from cser_ray.own_loop import Run

LENGTH, BATCH = 64, 8
READ: dict[str, list[ModuleType]] = {
    "train": [argparse, difflib, inspect, subprocess, tarfile, typing],
    "validation": [pickle],
    "test": [optparse],
}
"""Modules of the standard library whose source is the text: to train on, to choose by, to report."""


def texts(split: str, most: int | None = None) -> list[dict[str, Tensor]]:
    """The bytes of a split in windows of LENGTH, as the Trainer takes them; no more than `most`."""
    text = torch.tensor(list("".join(map(inspect.getsource, READ[split])).encode()))
    windows = text[: len(text) // LENGTH * LENGTH].view(-1, LENGTH)
    return [{"input_ids": ids, "labels": ids} for ids in windows[:most]]


class Reporting(TrainerCallback):  # type: ignore[misc]
    """Lets the Trainer evaluate when the study does, and hands the study what it finds, at the average of all workers."""

    def __init__(self, run: Run):
        self.run, self.losses = run, dict[str, float]()

    def on_step_end(self, args: Any, state: Any, control: Any, **others: Any) -> Any:
        """After each step."""
        control.should_evaluate = self.run.evaluation_due(state.global_step)
        return control

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: dict[str, float], **others: Any) -> None:
        """After each of the two data sets, on every process: the Trainer has gathered their losses."""
        self.losses |= {name: value for name, value in metrics.items() if name.endswith("_loss")}
        if len(self.losses) == 2:
            loss, test_loss = self.losses.pop("eval_validation_loss"), self.losses.pop("eval_test_loss")
            metrics, test_metrics = ({"perplexity": math.exp(each)} for each in (loss, test_loss))
            self.run.report(loss, test_loss=test_loss, metrics=metrics, test_metrics=test_metrics)


def train_loop(run: Run) -> None:
    """What each worker runs, once for each run of the study."""
    sizes = {"n_positions": LENGTH, "n_embd": 64, "n_layer": 2, "n_head": 4}
    model = GPT2LMHeadModel(GPT2Config(vocab_size=256, bos_token_id=0, eos_token_id=0, **sizes)).to(run.device)
    matrices, vectors = ([p for p in model.parameters() if (p.dim() > 1) is large] for large in (True, False))
    optimizer = run.optimizer(
        [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}], betas=(0.9, 0.95)
    )
    run.keep(model=model)
    run.constant_loss = math.log(256)
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder,
            use_cpu=run.device.type == "cpu",
            seed=run.seed % 2**32,
            max_steps=run.steps_total,
            per_device_train_batch_size=BATCH,
            per_device_eval_batch_size=64,
            dataloader_drop_last=True,
            average_tokens_across_devices=False,  # all windows are equally long
            save_strategy="no",
            logging_strategy="no",
            report_to=[],
            disable_tqdm=True,
        )
        trainer = Trainer(
            model,
            arguments,
            train_dataset=texts("train"),  # the Trainer deals its batches out to the workers
            eval_dataset={"validation": texts("validation", 256), "test": texts("test", 256)},
            optimizers=(optimizer, LambdaLR(optimizer, lambda step: run.lr_factor(step + 1))),
            callbacks=[Reporting(run)],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()


def main() -> None:
    """The study, from Python."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", default="results/own_study_huggingface")
    parser.add_argument("--steps", type=int, default=256)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--methods", default="adamw,no-sync-adamw,local-sgd,csea")
    parser.add_argument("--try", action="store_true", dest="alone", help="one run, under torchrun or alone")
    options = parser.parse_args()
    if options.alone:
        run = Run.alone(method="csea", ratio=64.0, inner="adamw", lr=3e-3, steps=options.steps)
        train_loop(run)
        run.finish()
        return
    from cser_ray import Study, run_study

    study = Study(
        loop=train_loop,
        inner="adamw",
        methods=tuple(options.methods.split(",")),
        ratios=(64.0,),
        lrs=(1e-3, 3e-3),
        steps=options.steps,
        repeats=options.repeats,
        schedule="cosine",
        warmup_steps=options.steps // 16,
        evaluations=4,
        workers=options.workers,
        compare_by="perplexity:min",
    )
    print(run_study(study, options.out))


if __name__ == "__main__":
    main()
