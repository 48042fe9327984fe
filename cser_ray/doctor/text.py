"""The findings in words, for a terminal."""

from cser_ray.doctor.findings import Findings
from cser_ray.doctor.record import RankRecord


def render(found: Findings) -> str:
    """The report without the plan."""
    first = found.first
    backend = f" over {first.backend}" if first.backend else ""
    lines = [
        f"{_many(found.world, 'process', 'processes')} on {_many(found.hosts, 'host')}{backend}, "
        f"{first.params:,} trained parameters on {first.device}"
    ]
    lines += [f"  {line}" for line in _step(found)]
    lines += [f"  {name:<12}{text}" for name, text in _network(found)]
    if len(found.records) > 1:
        lines += ["", "By rank, a step", *_ranks(found.records)]
    lines += _sent(found)
    return "\n".join(lines)


def _step(found: Findings) -> list[str]:
    first = found.first
    left = f", {_many(first.left_out, 'pause')} of over five medians left out" if first.left_out else ""
    lines = [
        f"{'step':<12}{_ms(found.step_s)}, median {_ms(first.median_s)}, 95 % under {_ms(first.p95_s)} "
        f"({first.steps} steps of rank {first.rank} after the warm-up{left})"
    ]
    if found.world == 1:
        return [*lines, f"{'waits':<12}nothing: the process that trains has joined no torch.distributed group"]
    if found.wait_s is None or found.network_s is None or found.others_s is None:
        return [*lines, f"{'waits':<12}unknown: DDP noted no step; the plan takes all of it for computing"]
    waits = (
        f"{'waits':<12}{_ms(found.wait_s)}, {found.wait_s / found.step_s:.0%} of the step: {_ms(found.network_s)} on "
        f"every rank, which is the network's, and {_ms(found.others_s)} for slower ranks"
    )
    lines.append(waits)
    if first.side_s:
        lines.append(
            f"{'hidden?':<12}{_ms(first.side_s)} of collectives on other CUDA streams: what of it is exposed is not known, "
            "and not in the line above"
        )
    return lines


def _network(found: Findings) -> list[tuple[str, str]]:
    if found.world == 1:
        return []
    first, lines = found.first, []
    lines.append(("in parallel", "; ".join(first.parallel) or "no DDP, no FSDP: the program averages by itself"))
    if any("FSDP" in said or "DTensor" in said for said in first.parallel):
        lines.append(("", "(the methods of the plan keep the whole model on every worker)"))
    if found.straggler:
        late = found.straggler
        lines.append(
            (
                "straggler",
                f"rank {late.rank} on {late.host}: the others wait {_ms(late.late_s)} a step longer than it does",
            )
        )
    else:
        lines.append(("straggler", "none: all ranks wait about as long"))
    link = next((record.link for record in found.records if record.link), None)
    if found.link and link:
        lines.append(
            (
                "link",
                f"{found.link.rate / 1e6:.4g} Mb/s of payload each way, {_ms(found.link.latency_s)} a small all-reduce "
                f"(all-reduces of {link.small_bytes:,} and {link.large_bytes:,} bytes after the last step)",
            )
        )
    else:
        lines.append(("link", f"not measured: {why_no_link(found)}"))
    if noise := found.noise:
        lines.append(
            (
                "noise",
                f"the gradient's noise scale is {noise.batches:.3g} ± {noise.error:.2g} of a rank's batches "
                f"({noise.samples} steps): {_worth(noise.batches, found.world)}",
            )
        )
    return lines


def _worth(batches: float, world: int) -> str:
    if batches > 2 * world:
        return f"far above {world}, so larger batches or more ranks shorten the training"
    if batches < world / 2:
        return f"far below {world}, so smaller batches or fewer ranks train as well by the step"
    return f"near {world}, the ranks that average: larger batches gain little"


def why_no_link(found: Findings) -> str:
    """The reason, and the way out."""
    if error := found.first.link_error:
        return error
    if any(record.link for record in found.records):
        return "the larger message was no slower than the small one; look again when the machine is quiet"
    return (
        "the command ended, or its ranks were at different steps, before they could send two sizes; give --seconds less "
        "than it trains for"
    )


def _ranks(records: tuple[RankRecord, ...]) -> list[str]:
    lines = [f"  {'rank':>4}  {'computes':>11}  {'waits':>11}  {'sends':>10}  host"]
    for record in records:
        wait = "-" if record.wait_s is None else _ms(record.wait_s)
        sent = sum(each.sent for each in record.sent.values())
        lines.append(f"  {record.rank:>4}  {_ms(record.compute_s):>11}  {wait:>11}  {_mb(sent):>10}  {record.host}")
    return lines


def _sent(found: Findings) -> list[str]:
    first = found.first
    if not first.sent:
        return ["", "No collective was recorded in the counted steps."] if found.world > 1 else []
    lines = [
        "",
        f"What rank {first.rank} sends a step (of {first.sent_steps} recorded; a ring's bytes where it is one)",
    ]
    lines.append(f"  {'collective':<18}{'calls':>8}{'payload':>12}{'leaves it':>12}")
    for name, each in sorted(first.sent.items(), key=lambda item: -item[1].sent):
        lines.append(f"  {name:<18}{each.calls:>8.3g}{_mb(each.payload):>12}{_mb(each.sent):>12}")
    return lines


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:.3g} ms"


def _mb(count: float) -> str:
    return f"{count / 1e6:.4g} MB"


def _many(count: int, one: str, many: str = "") -> str:
    return f"{count} {one if count == 1 else many or one + 's'}"
