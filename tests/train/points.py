"""A small configuration of every method, for tests that run each of them."""

import math
from dataclasses import asdict
from typing import Any

import torch

from cser_ray.budget import structure_for
from cser_ray.config import RunConfig
from cser_ray.methods import METHODS
from cser_ray.structure import Structure

CPU = torch.device("cpu")
N = 4

_CHOSEN: dict[str, dict[str, Any]] = {
    "sgd": {"ratio": 1.0},
    "no-sync": {"ratio": math.inf},
    "local-sgd": {"ratio": 4.0, "reset_interval": 4},
    "diloco": {"ratio": 4.0, "reset_interval": 4},
    "ef-sgd": {"ratio": 4.0, "reset_ratio": 4.0},
    "qsparse": {"ratio": 4.0, "reset_interval": 2, "reset_ratio": 2.0},
    "csea": {"ratio": 4.0, "reset_ratio": 4.0},
    "cser-pl": {"ratio": 4.0, "reset_interval": 2, "reset_ratio": 2.0},
    "cser": {"ratio": 4.0, "reset_interval": 2, "reset_ratio": 4.0, "gradient_ratio": 8.0},
    "cser-release": {"ratio": 4.0, "reset_interval": 2, "reset_ratio": 3.0, "gradient_ratio": 6.0},
    "sgd-bf16": {"ratio": 2.0},
    "adamw": {"ratio": 1.0},
    "no-sync-adamw": {"ratio": math.inf},
    "local-adamw": {"ratio": 4.0, "reset_interval": 4},
    "csea-adamw": {"ratio": 4.0, "reset_ratio": 4.0},
    "cser-adamw": {"ratio": 4.0, "reset_interval": 2, "reset_ratio": 4.0, "gradient_ratio": 8.0},
}


def _point(name: str) -> dict[str, Any]:
    ratio = 4.0 if METHODS[name].has_ratio else METHODS[name].formula(Structure())
    return {"ratio": ratio, **asdict(structure_for(name, ratio))}


POINTS: dict[str, dict[str, Any]] = {name: _CHOSEN.get(name) or _point(name) for name in METHODS.builtin}
"""Method -> its structure at R_C = 4 where it has one: a new one stands at the one that its record completes."""


def config(method: str, **values: Any) -> RunConfig:
    """A run of 12 steps on digits with N workers."""
    return RunConfig(**{"method": method, "workers": N, "steps": 12} | POINTS[method] | values)
