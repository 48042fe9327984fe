"""The constants of the advisor's model of time: what they mean, and their values where no table of links is given."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Constants:
    """What the model takes from measurements: of one backend on one kind of hardware.

    `source` says of which. `tuning.advise.calibration.fit` finds all of them but the source.
    """

    efficiency: float
    """Share of the link's rate that payload reaches; the rest is headers, acknowledgements and gaps."""
    hop_s: float
    """Latency of one stage of a collective; a ring all-reduce has 2 (n - 1) of them."""
    host_hop_s: float
    """Time that each stage takes from whoever computes, hidden or not."""
    host_s_per_byte: float
    """The same of each byte sent: a worker sends no faster, and hides no more."""
    hidden: float
    """Share of the step that collectives started during backward can hide behind."""
    early_s: float
    """What starting one of our collectives during the backward pass takes: hooks, and a kernel beside others."""
    pass_s_per_byte: float
    """One operation on the whole model, a byte of it: error feedback and outer steps take several."""
    ddp_s_per_byte: float
    """What DDP costs a step over our optimizers without communication, a byte of the model: may be negative."""
    cast_s_per_byte: float
    """Casts of a 16-bit hook, a byte of the model and synchronisation."""
    power_s_per_byte: float
    """PowerSGD's products and orthogonalisation, a byte of the model and step."""
    power_s: float
    """The same, whatever the model's size: many small kernels."""
    source: str


FITTED = {
    "nccl": Constants(
        efficiency=0.935,
        hop_s=1.23e-4,
        host_hop_s=1.23e-4,
        host_s_per_byte=4.3e-11,
        hidden=0.67,
        early_s=1.7e-4,
        pass_s_per_byte=4e-13,
        ddp_s_per_byte=-7e-13,
        cast_s_per_byte=0.0,
        power_s_per_byte=3.8e-11,
        power_s=0.0113,
        source="two H200s as two hosts on links of 1 and 10 Gb/s, ResNet-50 and a transformer of 85 M parameters, torch "
        "2.11; steps that the GPU limits, not the processor",
    ),
    "gloo": Constants(
        efficiency=0.926,
        hop_s=1.83e-3,
        host_hop_s=8.9e-4,
        host_s_per_byte=1.2e-9,
        hidden=1.0,
        early_s=0.0,
        pass_s_per_byte=3.4e-11,
        ddp_s_per_byte=-1.1e-10,
        cast_s_per_byte=6.5e-10,
        power_s_per_byte=5.3e-10,
        power_s=0.0,
        source="2 and 4 ranks on two cores, links of 100 Mb/s to 10 Gb/s, an MLP of 2.1 M parameters, torch 2.15",
    ),
}
"""Backend -> the constants that hold without `--links`; replace them by what `plan --links --format json` prints."""
