"""`import cser_ray` leads to what users need, and costs nothing until it is used."""

import re
import subprocess
import sys

import pytest

import cser_ray

HEAVY = {"torch", "ray", "pandas", "pyarrow", "numpy", "scipy", "sklearn", "torchvision", "tuning", "dashboards"}


def test_it_imports_nothing_heavy() -> None:
    """So that a script starts at once."""
    program = f"import sys, cser_ray; print(sorted({HEAVY!r} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("name", cser_ray.__all__)
def test_every_name_is_there(name: str) -> None:
    """It comes from where it is defined, and is documented there."""
    found = getattr(cser_ray, name)
    assert name in dir(cser_ray)
    assert found.__doc__


def test_it_says_its_version() -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+.*", cser_ray.__version__)


def test_another_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'CSERR'"):
        cser_ray.CSERR  # noqa: B018


def test_it_says_that_it_is_typed() -> None:
    """A type checker reads the annotations of an installed package only where it has this file."""
    from importlib.resources import files

    assert files("cser_ray").joinpath("py.typed").is_file()
