"""`cser-ray compressors`: what can be sent, and what it costs."""

import click

from cser_ray.commands.options import clear_errors, print_columns

TITLES_OF_KINDS = (
    "compressor",
    "travels by",
    "bytes a call that leave a worker",
    "delta",
    "CSER keeps, floats a parameter",
    "formats",
    "what",
    "source",
)


@click.command()
@click.option("--params", type=int, help="Show what each sends of a model of so many parameters; with --ratio.")
@click.option("--workers", type=int, default=8, show_default=True, help="n, for --params.")
@click.option("--ratio", type=float, help="The ratio R_C asked of each, for --params.")
def compressors(params: int | None, workers: int, ratio: float | None) -> None:
    """List the compressors, name first: what travels, its bytes, delta, and what CSER keeps for it.

    A compressor is written NAME, NAME/SIZE or NAME:FORMAT, as in top-k/4096:int2. Values of 16 bits are still summed by
    an all-reduce where those of 32 are; whole numbers are gathered; in either, CSER keeps e and x_hat. Methods over a
    graph send what is gathered to neighbours alone: as many messages as those are, in place of n-1. r is GRBS's own
    ratio, k what is kept, d the parameters, B the blocks, n the workers.
    """
    with clear_errors():
        if (params is None) != (ratio is None):
            raise ValueError("Give --params and --ratio together: how much is sent follows from both")
        if params is not None and ratio is not None:
            from cser_ray.compressors.solve import check_asked

            check_asked(ratio, workers)
            print_columns(_at(params, workers, ratio))
        else:
            print_columns(_listed())


def _listed() -> list[tuple[str, ...]]:
    from cser_ray.compressors import COMPRESSORS
    from cser_ray.compressors.text import FAMILIES, TWO_WAY, TWO_WAY_FAMILY

    listed = {}
    for name, entry in FAMILIES.items():
        listed[name if entry.default_size is None else f"{name}/{entry.default_size}"] = entry
        if name == "top-k/4096":
            listed[name + TWO_WAY] = TWO_WAY_FAMILY
    rows: list[tuple[str, ...]] = [
        (
            name,
            entry.travels,
            entry.bytes,
            entry.delta,
            entry.memory,
            " ".join(form for form in entry.formats if form != "fp32") or "-",
            entry.help,
            entry.source,
        )
        for name, entry in listed.items()
    ]
    rows += [(name, "its own", "-", "-", "-", "-", "another package's", "-") for name in COMPRESSORS.others]
    return [TITLES_OF_KINDS, *rows]


def _at(params: int, workers: int, ratio: float) -> list[tuple[str, ...]]:
    from cser_ray.compressors.solve import flat_width, nearest, own_ratio, shown
    from cser_ray.compressors.text import FAMILIES, TWO_WAY, close, parse

    rows = []
    ways = [
        (name, entry, way) for name, entry in FAMILIES.items() for way in ("", TWO_WAY)[: 1 + (name == "top-k/4096")]
    ]
    for name, entry, way in ways:
        for form in entry.formats:
            kind = parse(f"{name}:{form}{way}")
            found = nearest(kind, ratio, params, workers)
            realised = own_ratio(found, params, workers)
            sent = found.bytes_per_call(flat_width(params), workers)
            off = "" if close(ratio, realised) else "more than 2 % off"
            rows.append((str(kind), f"{realised:.4g}", f"{sent:,.0f}".replace(",", " "), shown(found), off))
    return [("compressor", "R_C", "bytes a call", "which is", ""), *rows]
