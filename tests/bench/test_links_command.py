"""`cser-ray bench links` before it makes anything: help, refusals, and what it imports."""

import os
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from cser_ray.bench.links.peers import PEERS
from cser_ray.bench.links.run import make_links
from cser_ray.commands import cli
from cser_ray.commands.bench import DEFAULT_METHODS, bench, links

FURTHER = {"ray", "pandas", "pyarrow", "sklearn", "scipy", "rich"}


def test_without_rights_it_says_so_in_one_line(tmp_path: Path) -> None:
    """Where ip and tc cannot be found, one line names them, and the exit code is not zero."""
    done = subprocess.run(
        [sys.executable, "-m", "cser_ray.bench", "links"],
        env=os.environ | {"PATH": str(tmp_path)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode != 0
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert "`ip` of iproute2" in line


def test_it_is_a_command_of_cser_ray() -> None:
    """`cser-ray bench links --help` explains every option."""
    result = CliRunner().invoke(cli.main, ["bench", "links", "--help"])
    assert result.exit_code == 0
    assert "Needs root and iproute2" in result.output
    assert [p.name for p in links.params if isinstance(p, click.Option) and not p.help and not p.show_default] == []


def test_help_names_every_peer() -> None:
    """The names stand in the help in so many words, to spare it the import: they are the table's."""
    (option,) = (p for p in bench.commands["links"].params if p.name == "methods")
    assert isinstance(option, click.Option)
    assert all(name in str(option.help) for name in PEERS)


@pytest.mark.parametrize("optimizer", DEFAULT_METHODS)
def test_the_default_methods_exist(optimizer: str) -> None:
    """What is measured where nothing is said can be built, and one csea and one other reset are delayed; none around Muon."""
    methods = DEFAULT_METHODS[optimizer].split(",")
    asked = make_links(["1gbit"], 2, 1, methods, [32.0], "pytext", optimizer, "cpu", None)
    assert {case.method for case in asked.cases} >= {method.partition("+")[0] for method in methods}
    assert any(case.reset_delay for case in asked.cases) or optimizer == "muon"


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"rates": ["fast"]}, "not the rate of a link"),
        ({"workers": 1}, "needs 2 workers"),
        ({"processes": 0}, "1 process or more"),
        ({"steps": 0}, "at least 1 step"),
        ({"model": "resnet5o"}, "resnet50"),
        ({"device": "cuda", "workers": 64}, "every process needs a GPU"),
        ({"methods": ["ef-sgd+delay2"]}, "takes no reset_delay"),
        ({"ratios": [0.5]}, "a ratio is the bytes of dense"),
    ],
)
def test_what_cannot_be_measured_is_refused(changed: dict[str, object], message: str) -> None:
    """Before any process starts, in a sentence that names the value."""
    asked = {
        "rates": ["1gbit"], "workers": 2, "processes": 1, "methods": ["csea"], "ratios": [32.0], "model": "mlp",
        "optimizer": "sgd", "device": "cpu", "steps": None,
    }  # fmt: skip
    with pytest.raises(ValueError, match=message):
        make_links(**asked | changed)  # type: ignore[arg-type]


def test_the_benchmark_needs_neither_ray_nor_pandas() -> None:
    """It runs in a Python that has torch and click alone: nothing else is imported by parent or worker."""
    program = (
        "import sys\nimport cser_ray.bench.links.run, cser_ray.bench.links.worker, cser_ray.commands.bench\n"
        f"print(sorted({FURTHER!r} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.system
def test_a_file_of_other_rows_is_refused_before_the_benchmark(tmp_path: Path) -> None:
    """--out does not find out after five minutes that it cannot append."""
    other = tmp_path / "rows.csv"
    other.write_text("a,b\n")
    result = CliRunner().invoke(bench, ["links", "--device", "cpu", "--methods", "csea", "--out", str(other)])
    assert result.exit_code == 1
    assert "other columns" in result.output
