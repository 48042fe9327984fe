"""CSER in Hugging Face's Trainer: a small GPT-2 learns the bytes of a Python module, on one process or several.

Run it as any of

    python examples/huggingface_trainer.py
    torchrun --nproc-per-node 2 examples/huggingface_trainer.py
    torchrun --nproc-per-node 2 examples/huggingface_trainer.py --resume    # after it was killed

It needs the extra `transformers`, and downloads nothing.
"""

import argparse
import inspect

import torch
from transformers import GPT2Config, GPT2LMHeadModel, TrainingArguments, set_seed

from cser_ray import CSER, GRBS
from cser_ray.integrations.transformers import Trainer

parser = argparse.ArgumentParser()
parser.add_argument("--out", default="results/huggingface_trainer")
parser.add_argument("--steps", type=int, default=200)
parser.add_argument("--resume", action="store_true")
options = parser.parse_args()

text = torch.tensor(list(inspect.getsource(argparse).encode()))
lines = [{"input_ids": line, "labels": line} for line in text[: len(text) // 64 * 64].view(-1, 64)]

args = TrainingArguments(
    options.out,
    use_cpu=not torch.cuda.is_available(),  # else, without a GPU, each process would take itself for the only one
    per_device_train_batch_size=8,
    max_steps=options.steps,
    learning_rate=0.1,
    logging_steps=50,
    save_steps=50,
    save_total_limit=2,
    average_tokens_across_devices=False,  # all lines are equally long: no round trip a step to count tokens
    report_to=[],
    disable_tqdm=True,
)
set_seed(0)
model = GPT2LMHeadModel(
    GPT2Config(vocab_size=256, n_positions=64, n_embd=32, n_layer=2, n_head=4, bos_token_id=0, eos_token_id=0)
)
trainer = Trainer(
    model,
    args,
    train_dataset=lines[:-64],
    eval_dataset=lines[-64:],
    optimizer_cls_and_kwargs=(
        CSER,
        {"reset_interval": 4, "reset_compressor": GRBS(16), "gradient_compressor": GRBS(64)},
    ),
)
trainer.train(resume_from_checkpoint=options.resume)
loss = trainer.evaluate()["eval_loss"]  # of the average of all workers, which the model is now
trainer.save_model(f"{options.out}/final")
if trainer.is_world_process_zero():
    optimizer = trainer.optimizer.optimizer
    sent = optimizer.communicator.ledger.total(in_ratio=True).bytes
    print(f"{args.world_size} workers, {optimizer.t} steps, {sent / 1e6:.2f} MB sent by each: loss {loss:.3f}")
