"""The optimizers that random loops are tried on, in each of their forms, as a user would ask for them."""

from dataclasses import dataclass, field
from typing import Any

from torch.nn import Parameter

from cser_ray.compressors import GRBS, Identity, TopK
from cser_ray.optimizers import (
    CSEA,
    CSER,
    CSERPL,
    EFSGD,
    SGD,
    SPARTA,
    CSERRelease,
    DiLoCo,
    FlatOptimizer,
    LocalSGD,
    MuLoCo,
    NoSync,
    PartialReset,
    QSparseLocalSGD,
    SparseLoCo,
    StreamingDiLoCo,
)
from cser_ray.optimizers.systems.dgc import DGC
from cser_ray.optimizers.systems.mem_sgd import MemSGD

H, BLOCK = 3, 4
"""The reset interval, where a form has one (delays are shorter and longer), and the size of GRBS's blocks."""
C1, C2 = GRBS(3, block_size=BLOCK), GRBS(5, block_size=BLOCK)
DEFAULTS: dict[str, Any] = {
    "reset_interval": 1, "reset_compressor": None, "gradient_compressor": None, "residual_in_model": 1.0,
    "error_decay": 1.0, "outer_lr": 1.0, "outer_momentum": 0.0, "reset_delay": 0, "overlap": False, "implementation": "auto",
}  # fmt: skip
"""Of the recursion's knobs."""
IMPLIED: dict[type, dict[str, Any]] = {
    QSparseLocalSGD: {"residual_in_model": 0.0},
    LocalSGD: {"reset_compressor": Identity()},
    DiLoCo: {"reset_compressor": Identity()},
    MuLoCo: {"reset_compressor": Identity()},
    SparseLoCo: {"residual_in_model": 0.0},
}
"""Knobs that a class sets by its name."""


@dataclass(frozen=True)
class Form:
    """A class and the arguments that make it this form."""

    kind: type[FlatOptimizer]
    arguments: dict[str, Any] = field(default_factory=dict)

    @property
    def knobs(self) -> dict[str, Any]:
        """Of the recursion, all of them."""
        return DEFAULTS | IMPLIED.get(self.kind, {}) | self.arguments

    @property
    def overlapped(self) -> bool:
        """Whether it sends during the backward pass."""
        return bool(self.knobs["overlap"])

    @property
    def keeps_model(self) -> bool:
        """Whether the workers' common model, or resets under way, are kept beside their models."""
        knobs = self.knobs
        with_error = knobs["implementation"] == "I" or (
            self.kind is CSER and isinstance(knobs["reset_compressor"], TopK)
        )
        beside = (QSparseLocalSGD, DiLoCo, PartialReset, SparseLoCo, MuLoCo, StreamingDiLoCo)
        return self.kind in beside or with_error or knobs["reset_delay"] > 0

    @property
    def takes_muon(self) -> bool:
        """Whether Muon can be inside: where updates of whole matrices need not be sent during the backward pass."""
        return self.kind is not DGC and (self.kind is SGD or not self.overlapped)

    def build(self, groups: list[dict[str, Any]], parameters: list[Parameter]) -> FlatOptimizer:
        """With one group for all parameters, or one for the weights and one for the biases."""
        parts = [parameters] if len(groups) == 1 else [parameters[:2], parameters[2:]]
        given = [{"params": part, **options} for part, options in zip(parts, groups, strict=True)]
        betas = {"betas": groups[0]["betas"]} if "betas" in groups[0] else {}
        inner = "nesterov" if not betas else "muon" if "momentum" in groups[0] else "adamw"
        return self.kind(given, inner=inner, **betas, **self.arguments)


RESET: dict[str, Any] = {"reset_interval": H, "reset_compressor": C1}
BOTH: dict[str, Any] = RESET | {"gradient_compressor": C2}
TOP_K: dict[str, Any] = {"reset_interval": H, "reset_compressor": TopK(3), "gradient_compressor": TopK(5)}
TOP_K_ALONE: dict[str, Any] = {"reset_interval": H, "reset_compressor": TopK(3)}
FRAGMENTS: dict[str, Any] = {"reset_interval": H, "reset_compressor": GRBS(2, "cyclic", BLOCK)}
OUTER: dict[str, Any] = {"outer_lr": 0.8, "outer_momentum": 0.5}
LATE: dict[str, Any] = {"reset_delay": 4}
EARLY: dict[str, Any] = {"overlap": True}
FORMS = {
    "sgd": Form(SGD),
    "sgd overlapped": Form(SGD, EARLY),
    "no-sync": Form(NoSync),
    "local-sgd": Form(LocalSGD, {"reset_interval": H}),
    "local-sgd delayed": Form(LocalSGD, {"reset_interval": H, "reset_delay": 2}),
    "diloco": Form(DiLoCo, {"reset_interval": H, **OUTER}),
    "ef-sgd": Form(EFSGD, {"gradient_compressor": C1}),
    "ef-sgd top-k": Form(EFSGD, {"gradient_compressor": TopK(3)}),
    "qsparse": Form(QSparseLocalSGD, RESET),
    "qsparse top-k": Form(QSparseLocalSGD, {"reset_interval": H, "reset_compressor": TopK(3)}),
    "csea": Form(CSEA, {"reset_compressor": C1}),
    "csea overlapped": Form(CSEA, {"reset_compressor": C1, **EARLY}),
    "csea overlapped, delayed": Form(CSEA, {"reset_compressor": C1, "reset_delay": 2, **EARLY}),
    "cser-pl": Form(CSERPL, RESET),
    "cser-pl overlapped": Form(CSERPL, RESET | EARLY),
    "cser-release": Form(CSERRelease, BOTH),
    "cser I": Form(CSER, BOTH | {"implementation": "I"}),
    "cser I delayed": Form(CSER, BOTH | LATE | {"implementation": "I"}),
    "cser II": Form(CSER, BOTH),
    "cser II delayed": Form(CSER, BOTH | LATE),
    "cser top-k": Form(CSER, TOP_K),
    "cser top-k delayed": Form(CSER, TOP_K | LATE),
    "cser overlapped": Form(CSER, BOTH | EARLY),
    "cser overlapped, delayed": Form(CSER, BOTH | EARLY | {"reset_delay": 2}),
    "partial-reset": Form(PartialReset, BOTH | OUTER | {"residual_in_model": 0.25, "error_decay": 0.9}),
    "mem-sgd": Form(MemSGD, {"ratio": 4.0}),
    "dgc": Form(DGC, {"ratio": 4.0}),
    "sparta": Form(SPARTA, {"reset_compressor": GRBS(3, block_size=1)}),
    "sparseloco": Form(SparseLoCo, TOP_K_ALONE | {"outer_lr": 0.7, "error_decay": 0.9}),
    "muloco": Form(MuLoCo, {"reset_interval": H, **OUTER}),
    "streaming-diloco": Form(StreamingDiLoCo, FRAGMENTS | OUTER),
    "streaming-diloco delayed": Form(StreamingDiLoCo, FRAGMENTS | OUTER | {"reset_delay": 2}),
    "partial-reset top-k": Form(PartialReset, TOP_K | LATE | {"residual_in_model": 0.5}),
}
"""By what they are called where a sequence is reported."""
