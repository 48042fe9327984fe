"""The records of today's systems for training over slow links: points of the recursion, with what their papers fix."""

from cser_ray.methods.record import Method
from cser_ray.structure import overall_ratio

_H = {"reset_interval": "reset_interval"}
_C1 = {"reset_compressor": "reset_ratio"}
_OUTER = {"outer_lr": "outer_lr", "outer_momentum": "outer_momentum"}
_RECORDS = (
    Method(
        name="sparseloco",
        help="SparseLoCo: AdamW inside, the largest of each chunk in 2 bits, a fading error; R_C = RC1 H",
        rule="sends one part in RC1 of the bytes every H steps: RC1*H = R_C",
        formula=overall_ratio,
        optimizer="cser_ray.optimizers.sparseloco:SparseLoCo",
        knobs=("reset_interval", "reset_ratio"),
        arguments=_H | _C1,
        compressor="top-k/4096:int2",
        inner="adamw",
        reference="adamw",
        variants=("schedule",),
        passes=4,
        look=("qsparse", "star"),
        source="Sarfi et al., arXiv 2508.15706; code tplr-ai/templar",
        travels="all-gather",
        memory=2,
        sent="(n-1) d/4096 (1.75k + 8) / H",
    ),
    Method(
        name="muloco",
        help="MuLoCo: DiLoCo around Muon; H = R_C",
        rule="sends the whole model every H steps: H = R_C",
        formula=overall_ratio,
        optimizer="cser_ray.optimizers.muloco:MuLoCo",
        knobs=("reset_interval",),
        arguments=_H | _OUTER,
        usual={"outer_lr": 0.7, "outer_momentum": 0.6},
        inner="muon",
        reference="muon",
        variants=("schedule",),
        passes=7,
        look=("diloco", "star"),
        source="Therien et al., arXiv 2505.23725; code facebookresearch/MuLoCo",
        memory=2,
    ),
    Method(
        name="sparta",
        help="SPARTA: AdamW inside, random single parameters averaged every step; R_C = RC1",
        rule="averages one parameter in RC1 every step: RC1 = R_C",
        formula=overall_ratio,
        optimizer="cser_ray.optimizers.sparta:SPARTA",
        knobs=("reset_ratio",),
        arguments=_C1,
        compressor="grbs/1",
        inner="adamw",
        reference="adamw",
        variants=("schedule",),
        look=("csea", "circle"),
        source="Beton et al., openreview stFPf3gzq1; code exo-explore/gym",
    ),
    Method(
        name="streaming-diloco",
        help="Streaming DiLoCo: a fragment in turn every H steps, each with its outer step; R_C = RC1 H",
        rule="sends one of RC1 fragments every H steps: RC1*H = R_C, the steps from one message of a fragment to its next",
        formula=overall_ratio,
        optimizer="cser_ray.optimizers.streaming_diloco:StreamingDiLoCo",
        knobs=("reset_interval", "reset_ratio"),
        arguments=_H | _C1 | _OUTER,
        compressor="grbs-cyclic",
        variants=("delay", "schedule"),
        passes=7,
        look=("diloco", "left"),
        source="Douillard et al., arXiv 2501.18512; code pytorch/torchft",
        memory=2,
    ),
)
RIVALS = {method.name: method for method in _RECORDS}
"""Name -> record."""
