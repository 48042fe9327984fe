"""The command `cser-ray`. A module of its own, so that it can say so where another `cser_ray` is imported in our place."""

import importlib.util
import sys
from pathlib import Path


def main() -> None:
    """Run the command line; end with one sentence where `cser_ray` is no package of ours."""
    if said := shadowed():
        sys.exit(f"Error: {said}")
    from cser_ray.commands.cli import main as command

    command(prog_name="cser-ray")


def shadowed() -> str:
    """A sentence on another `cser_ray` that is found first; empty where it is the one beside this file, or a copy of it."""
    spec = importlib.util.find_spec("cser_ray")
    place = "" if spec is None else str(spec.origin or next(iter(spec.submodule_search_locations or ()), ""))
    folder = Path(place).parent if place.endswith(".py") else Path(place)
    if not place or (folder / "commands" / "cli.py").is_file():
        return ""
    return f"{place} is imported in place of cser-ray's package cser_ray: rename it, or take its folder off PYTHONPATH"


if __name__ == "__main__":
    main()
