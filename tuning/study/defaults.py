"""What a study takes where the user says nothing: by task, as the paper ran it where the paper did."""

from typing import Any

from cser_ray.budget import METHOD_BUDGETS

SHARDED_CIFAR = 45_000 // 8 // 16
"""Steps a pass of CIFAR-100's training part over 8 workers of batch 16."""
SHARDED_IMAGENET = 1_255_545 // 8 // 32
"""The same of ImageNet's over 8 workers of batch 32."""

TASK_DEFAULTS: dict[str, dict[str, Any]] = {
    "digits": {},
    "mnist1d": {},
    "pytext": {},
    "cifar100": {  # paper, section 5.1, and the authors' scripts
        "steps": 200 * SHARDED_CIFAR,
        "lrs": (0.05, 0.1, 0.5, 1.0),
        "ratios": (32.0, 256.0, 1024.0),
        "evaluations": 40,
    },
    "imagenet": {  # paper, section 5.2: 120 epochs, 5 of warm-up, cosine
        "steps": 120 * SHARDED_IMAGENET,
        "warmup_steps": 5 * SHARDED_IMAGENET,
        "schedule": "cosine",
        "weight_decay": 1e-4,
        "lrs": (0.025, 0.05, 0.1),
        "ratios": (32.0, 256.0, 1024.0),
        "evaluations": 24,
    },
}
"""Task -> those fields of `Study` whose default differs."""

METHOD_LINES = {
    "sgd": "synchronous SGD: dense gradients every step; the reference, R_C = 1",
    "no-sync": "no communication, one average at the end: the floor every method must beat",
    "local-sgd": "average the models every H = R_C steps",
    "diloco": "local steps, then an outer Nesterov step on the averaged change; H = R_C",
    "ef-sgd": "error feedback: what a message drops is added to the next; R_C = RC1",
    "qsparse": "QSparse-local-SGD (Algorithm 1): H local steps, then error feedback; R_C = RC1 H",
    "csea": "error reset on a block every step; R_C = RC1",
    "cser-pl": "error reset on a block every H steps; R_C = RC1 H",
    "cser": "CSER as printed (Algorithms 2 and 4): compressed gradients, reset every H steps",
    "cser-release": "CSER as its authors' code does it: models averaged on a block, a larger one every H steps",
    "sgd-bf16": "synchronous SGD whose gradients travel in 16 bits: R_C = 2, the first thing to try",
    "adamw": "synchronous AdamW: dense gradients every step, R_C = 1",
    "no-sync-adamw": "AdamW without communication, one average at the end",
    "local-adamw": "local-sgd with AdamW in place of SGD",
    "csea-adamw": "csea with AdamW in place of SGD",
    "cser-adamw": "cser with AdamW in place of SGD",
}
assert METHOD_LINES.keys() == METHOD_BUDGETS.keys()

METHODS = tuple(name for name in METHOD_LINES if name not in ("sgd-bf16",) and not name.endswith("adamw"))
"""Those that a study compares where none are named: SGD's, which share a grid of learning rates."""
