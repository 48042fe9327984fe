"""What each worker does with its own gradients before anything is sent, by the name that `inner` has for it."""

from cser_ray.optimizers.local_steps.adamw import AdamW
from cser_ray.optimizers.local_steps.base import LocalStep
from cser_ray.optimizers.local_steps.muon import Muon
from cser_ray.optimizers.local_steps.nesterov import Nesterov

LOCAL_STEPS: dict[str, type[LocalStep]] = {"nesterov": Nesterov, "adamw": AdamW, "muon": Muon}

__all__ = ["LOCAL_STEPS", "AdamW", "LocalStep", "Muon", "Nesterov"]
