"""The documents are true: links resolve, commands parse, examples run, and tables list what the code has."""

import ast
import contextlib
import importlib
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
import torch
import yaml
from click.testing import CliRunner
from torch import Tensor
from torch.nn import Parameter

import cser_ray
from cser_ray.commands import cli
from cser_ray.communication.communicator import Communicator
from cser_ray.config import BLOCK_ORDERS
from cser_ray.optimizers import CSER, Placement
from docs.generate import REFERENCE, pages, reference
from tests.stacked import OPTIMIZERS

ROOT = Path(__file__).parents[1]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
DECIDE, ADOPT, REFERENCE_PAGE, METHODS = (
    ROOT / f"docs/{name}.md" for name in ("decide", "adopt", "reference", "methods")
)
PACKAGES = ("cser_ray", "tuning", "dashboards")
every_document = pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)


def blocks(document: Path, language: str) -> list[str]:
    """The fenced blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", document.read_text(), re.MULTILINE | re.DOTALL)


def block(document: Path, beginning: str, language: str = "python") -> str:
    """The one fenced block that begins so."""
    (found,) = (text for text in blocks(document, language) if text.startswith(beginning))
    return found


def anchors(document: Path) -> set[str]:
    """The headings of a document as GitHub links to them."""
    headings = re.findall(r"^#+ (.*)", document.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def commands() -> list[tuple[str, list[str]]]:
    """(document, arguments) of every `cser-ray` command that the documents show, in blocks or in a sentence."""
    found = []
    for document in DOCUMENTS:
        text = document.read_text()
        lines = "\n".join(blocks(document, "bash")).replace("\\\n", " ").splitlines()
        lines += re.findall(r"`(cser-ray [^`]+)`", re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL))
        for line in lines:
            words = shlex.split(line, comments=True)
            if "cser-ray" in words:
                found.append((document.name, words[words.index("cser-ray") + 1 :]))
    return found


def parsed(arguments: list[str]) -> click.Context:
    """The arguments as the command sees them, names and types checked, without running it."""
    command = cli.main.commands[arguments[0]]
    # a sentence that only names a command need not give it what it requires
    return command.make_context(arguments[0], arguments[1:], resilient_parsing=len(arguments) == 1)


@every_document
def test_relative_links_resolve(document: Path) -> None:
    """Every link into the repository leads to a file, and every anchor to a heading."""
    for target in re.findall(r"\]\(([^)\s]+)\)", document.read_text()):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (document.parent / path).resolve() if path else document
        assert file.exists(), target
        assert not anchor or anchor in anchors(file), target


@every_document
def test_files_named_in_a_sentence_exist(document: Path) -> None:
    """A path of this repository in backticks is there."""
    named = re.findall(r"`((?:cser_ray|tuning|dashboards|tests|docs|examples)/[\w./]*)`", document.read_text())
    assert [path for path in named if not (ROOT / path).exists()] == []


@every_document
def test_imports_shown_exist(document: Path) -> None:
    """What an example imports from this repository is there under that name."""
    for text in blocks(document, "python"):
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] in PACKAGES:
                module = importlib.import_module(node.module)
                assert [each.name for each in node.names if not hasattr(module, each.name)] == []


@pytest.mark.parametrize(
    ("document", "arguments"), commands(), ids=lambda value: value if isinstance(value, str) else " ".join(value)
)
def test_commands_parse(document: str, arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every command shown has a command, options and names that exist."""
    monkeypatch.chdir(tmp_path)
    Path("study.yaml").write_text(block(DECIDE, "# study.yaml", "yaml"))
    Path("best.yaml").touch()
    with contextlib.suppress(click.exceptions.Exit):  # --help
        parsed(arguments)


def test_the_study_file_holds_settings_of_a_study() -> None:
    """Every line of study.yaml in docs/decide.md is an option of `tune`, with a value that it takes."""
    settings = yaml.safe_load(block(DECIDE, "# study.yaml", "yaml"))
    values = {k: ",".join(map(str, v)) if isinstance(v, list) else str(v) for k, v in settings.items()}
    context = parsed(["tune", *(word for k, v in values.items() for word in (f"--{k}", v))])
    assert context.params["methods"] == tuple(settings["methods"])
    assert context.params["block_order"] == "cyclic"


@pytest.mark.parametrize(
    ("path", "text"), list(pages()), ids=lambda value: value.name if isinstance(value, Path) else ""
)
def test_generated_documents_are_what_the_code_says(path: Path, text: str) -> None:
    """`python docs/generate.py` was run after the last change."""
    assert path.read_text() == text


@pytest.mark.filterwarnings("error")
def test_the_reference_is_built(tmp_path: Path) -> None:
    """`make docs`, without a warning: every module that it names is there, and every name of the front door."""
    reference(tmp_path)
    assert all((tmp_path / f"{module.replace('.', '/')}.html").is_file() for module in REFERENCE)
    page = (tmp_path / "cser_ray.html").read_text()
    assert all(f'id="{name}"' in page for name in cser_ray.__all__)


def test_methods_has_a_section_for_every_method() -> None:
    """docs/methods.md describes the methods that are a class of their own, and no other."""
    assert sorted(re.findall(r"^## `([\w-]+)`$", METHODS.read_text(), re.MULTILINE)) == sorted(OPTIMIZERS)


def test_methods_lists_every_block_order() -> None:
    """Its table of block orders is BLOCK_ORDERS."""
    table = METHODS.read_text().partition("## Block orders")[2].partition("\n## ")[0]
    assert re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE) == list(BLOCK_ORDERS)


@pytest.fixture
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder on the path with the modules of docs/adopt.md in it."""
    for name in ("tumours", "comb"):
        (tmp_path / f"{name}.py").write_text(block(ADOPT, f"# {name}.py"))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    for name in ("tumours", "comb"):
        sys.modules.pop(name, None)


def test_the_task_of_the_documents_trains_and_its_rows_are_read(modules: Path) -> None:
    """`cser-ray train` learns the example task, and the example of reading results reads what it wrote."""
    arguments = "train --task tumours:Tumours --workers 4 --steps 64 --evaluations 2 --ratio 16 --out results/digits"
    result = CliRunner().invoke(cli.main, arguments.split(), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    read: dict[str, object] = {}
    exec(block(REFERENCE_PAGE, "from cser_ray.store.read import"), read)  # the documented block itself
    (row,) = read["runs"].itertuples()  # type: ignore[attr-defined]
    assert row.task == "tumours:Tumours"
    assert row.test_acc > 80  # 63 % are benign


def test_the_compressor_of_the_documents_is_one(modules: Path) -> None:
    """CSER takes it in both implementations to the same models, and sends one coordinate in ten."""
    comb = importlib.import_module("comb").Comb
    models = []
    for implementation in ("I", "II"):
        x, optimizer = quadratic(reset_compressor=comb(10), gradient_compressor=comb(5), implementation=implementation)
        models.append(x)
        # 20 values in 5 resets and 10 gradient syncs; a ring all-reduce among 3 sends 4 / 3 of them
        assert optimizer.communicator.ledger.total(in_ratio=True).bytes == pytest.approx((5 * 2 + 10 * 4) * 8 * 4 / 3)
    torch.testing.assert_close(*models, rtol=1e-12, atol=1e-12)
    assert (models[0][0] != models[0][1]).any()


def quadratic(**arguments: object) -> tuple[Tensor, CSER]:
    """Ten steps of CSER, H = 2, from one model towards a target of each of 3 workers."""
    generator = torch.Generator().manual_seed(0)
    x = Parameter(torch.zeros(3, 20, dtype=torch.float64))
    targets = torch.randn(3, 20, generator=generator, dtype=torch.float64)
    placement = Placement(Communicator(3, group=None), stacked=True)
    optimizer = CSER([x], 0.1, reset_interval=2, placement=placement, **arguments)  # type: ignore[arg-type]
    for _ in range(10):
        optimizer.zero_grad()
        (x - targets).square().sum().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return x.detach(), optimizer
