"""The records of the methods that this package has, in the order in which tables list them: simple ones first."""

import math
from dataclasses import replace
from typing import Any

from cser_ray.methods.graphs import GRAPHS
from cser_ray.methods.record import ALL_KNOBS, Method
from cser_ray.methods.rivals import RIVALS
from cser_ray.methods.systems import SYSTEMS
from cser_ray.structure import Structure, overall_ratio, qsparse_term, released_ratio, theorem1_term

_DENSE = "sends the whole gradient every step, so R_C = 1"
_NOTHING = "sends nothing, so R_C = inf"
_MODELS = "sends the whole model every H steps: H = R_C"
_EVERY_STEP = "sends one part in RC1 every step: RC1 = R_C"
_EVERY_H = "sends one part in RC1 every H steps: RC1*H = R_C"
_BOTH = "1/R_C = 1/RC2 + 1/(RC1*H)"
_H = {"reset_interval": "reset_interval"}
_C1 = {"reset_compressor": "reset_ratio"}
_C2 = {"gradient_compressor": "gradient_ratio"}


def _dense(structure: Structure) -> float:
    return 1.0


def _half(structure: Structure) -> float:
    return 2.0


def _never(structure: Structure) -> float:
    return math.inf


_RECORDS = (
    Method(
        name="sgd",
        help="synchronous SGD: dense gradients every step; the reference, R_C = 1",
        rule=_DENSE,
        formula=_dense,
        optimizer="cser_ray.optimizers.sgd:SGD",
        theorem1=theorem1_term,
        simple=True,
        by_default=True,
        variants=("overlap",),
        look=("sgd", "bar"),
        source="SGD with Nesterov momentum as torch.optim.SGD has it",
    ),
    Method(
        name="no-sync",
        help="no communication, one average at the end: the floor every method must beat",
        rule=_NOTHING,
        formula=_never,
        optimizer="cser_ray.optimizers.sgd:NoSync",
        by_default=True,
        look=("no-sync", "bar"),
        source="Zinkevich et al., NeurIPS 2010",
        travels="nothing",
        sent="0",
    ),
    Method(
        name="local-sgd",
        help="average the models every H = R_C steps",
        rule=_MODELS,
        formula=overall_ratio,
        optimizer="cser_ray.optimizers.local_sgd:LocalSGD",
        knobs=("reset_interval",),
        arguments=_H,
        theorem1=theorem1_term,
        variants=("delay", "overlap", "schedule"),
        simple=True,
        by_default=True,
        rehearsal=5,
        look=("local-sgd", "up"),
        source="Stich, arXiv 1805.09767",
    ),
    Method(
        name="diloco",
        help="local steps, then an outer Nesterov step on the averaged change; H = R_C",
        rule=_MODELS,
        formula=overall_ratio,
        optimizer="cser_ray.optimizers.diloco:DiLoCo",
        knobs=("reset_interval",),
        arguments=_H | {"outer_lr": "outer_lr", "outer_momentum": "outer_momentum"},
        variants=("schedule",),
        passes=7,
        by_default=True,
        rehearsal=6,
        look=("diloco", "down"),
        source="Douillard et al., arXiv 2311.08105",
        memory=2,
    ),
    Method(
        name="ef-sgd",
        help="error feedback: what a message drops is added to the next; R_C = RC1",
        rule=_EVERY_STEP,
        formula=overall_ratio,
        optimizer="cser_ray.optimizers.ef_sgd:EFSGD",
        knobs=("reset_ratio",),
        arguments={"gradient_compressor": "reset_ratio"},
        theorem1=qsparse_term,
        variants=("schedule",),
        passes=5,
        by_default=True,
        rehearsal=8,
        look=("ef-sgd", "square"),
        source="Karimireddy et al., arXiv 1901.09847",
        memory=1,
    ),
    Method(
        name="csea",
        help="error reset on a block every step; R_C = RC1",
        rule=_EVERY_STEP,
        formula=overall_ratio,
        optimizer="cser_ray.optimizers.csea:CSEA",
        knobs=("reset_ratio",),
        arguments=_C1,
        theorem1=theorem1_term,
        variants=("delay", "overlap", "schedule"),
        by_default=True,
        rehearsal=4,
        look=("csea", "diamond"),
        source="Xie et al., arXiv 2007.13221",
    ),
    Method(
        name="qsparse",
        help="QSparse-local-SGD (Algorithm 1): H local steps, then error feedback; R_C = RC1 H",
        rule=_EVERY_H,
        formula=overall_ratio,
        optimizer="cser_ray.optimizers.qsparse:QSparseLocalSGD",
        knobs=("reset_interval", "reset_ratio"),
        arguments=_H | _C1,
        theorem1=qsparse_term,
        variants=("schedule",),
        passes=3,
        by_default=True,
        rehearsal=7,
        look=("qsparse", "left"),
        source="Basu et al., arXiv 1906.02367",
        memory=2,
    ),
    Method(
        name="partial-reset",
        help="a share of the residual in the model, the rest joins the next message; R_C = RC1 H",
        rule=_EVERY_H,
        formula=overall_ratio,
        optimizer="cser_ray.optimizers.partial_reset:PartialReset",
        knobs=("reset_interval", "reset_ratio"),
        arguments=_H | _C1 | {"residual_in_model": "residual_in_model"},
        variants=("delay", "schedule"),
        passes=4,
        rehearsal=9,
        source="Xu, Huang 2004.05298, with a local step as CSER 2007.13221 has it",
        memory=2,
        look=("cser-pl", "star"),
    ),
    Method(
        name="cser-pl",
        help="error reset on a block every H steps; R_C = RC1 H",
        rule=_EVERY_H,
        formula=overall_ratio,
        optimizer="cser_ray.optimizers.cser_pl:CSERPL",
        knobs=("reset_interval", "reset_ratio"),
        arguments=_H | _C1,
        theorem1=theorem1_term,
        variants=("delay", "overlap", "schedule"),
        by_default=True,
        rehearsal=1,
        look=("cser-pl", "cross"),
        source="Xie et al., arXiv 2007.13221",
    ),
    Method(
        name="cser",
        help="CSER as printed (Algorithms 2 and 4): compressed gradients, reset every H steps",
        rule=_BOTH,
        formula=overall_ratio,
        optimizer="cser_ray.optimizers.cser:CSER",
        knobs=ALL_KNOBS,
        arguments=_H | _C1 | _C2,
        theorem1=theorem1_term,
        variants=("delay", "overlap", "schedule"),
        by_default=True,
        rehearsal=2,
        look=("cser", "circle"),
        source="Xie et al., arXiv 2007.13221, Algorithms 2 and 4",
    ),
    Method(
        name="cser-release",
        help="CSER as its authors' code does it: models averaged on a block, a larger one every H steps",
        rule="1/R_C = (1-1/H)/RC2 + 1/(RC1*H)",
        formula=released_ratio,
        optimizer="cser_ray.optimizers.cser_release:CSERRelease",
        shared_only=True,
        knobs=ALL_KNOBS,
        arguments=_H | _C1 | _C2,
        by_default=True,
        rehearsal=3,
        look=("cser-release", "right"),
        source="code of Xie et al., xcgoner/NeurIPS2020_CSER",
    ),
    Method(
        name="sgd-bf16",
        help="synchronous SGD whose gradients travel in 16 bits: R_C = 2, the first thing to try",
        rule="sends the whole gradient every step in 16 bits, so R_C = 2",
        formula=_half,
        optimizer="cser_ray.optimizers.sgd:SGD",
        constants={"payload": "torch:bfloat16"},
        variants=("overlap",),
        look=("sgd", "star"),
        source="common practice, such as the bf16 hook of torch DDP",
    ),
)
_ADAMW = {
    "adamw": ("sgd", "synchronous AdamW: dense gradients every step, R_C = 1", "square"),
    "no-sync-adamw": ("no-sync", "AdamW without communication, one average at the end", "star"),
    "local-adamw": ("local-sgd", "local-sgd with AdamW in place of SGD", "star"),
    "csea-adamw": ("csea", "csea with AdamW in place of SGD", "star"),
    "cser-adamw": ("cser", "cser with AdamW in place of SGD", "star"),
}
"""Name -> the method that it is but for its local step, its help, its symbol."""
_MUON = {
    "muon": ("sgd", "synchronous Muon, AdamW for what is no matrix: dense gradients, R_C = 1", "diamond"),
    "no-sync-muon": ("no-sync", "Muon without communication, one average at the end", "diamond"),
}
"""Likewise."""
_STEPS = {
    "adamw": "AdamW: Loshchilov and Hutter, arXiv 1711.05101",
    "muon": "Muon: Jordan et al., kellerjordan.github.io/posts/muon",
}


def _around(inner: str, name: str, method: Method, help: str, shape: str) -> Method:
    """The same with another step inside: the paper's theorem does not cover it, and a study compares it where it is named."""
    source = f"{method.source}; {_STEPS[inner]}"
    named: dict[str, Any] = {"name": name, "help": help, "look": (method.look[0], shape), "source": source}
    named |= {"inner": inner, "reference": inner}  # the synchronous methods are called as their steps are
    return replace(method, **named, theorem1=None, by_default=False, rehearsal=100)


RECORDS = {method.name: method for method in _RECORDS}
RECORDS |= {name: _around("adamw", name, RECORDS[of], help, shape) for name, (of, help, shape) in _ADAMW.items()}
RECORDS |= {name: _around("muon", name, RECORDS[of], help, shape) for name, (of, help, shape) in _MUON.items()}
RECORDS |= RIVALS | SYSTEMS | GRAPHS
"""Name -> record."""
