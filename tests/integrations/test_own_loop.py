"""A loop without a framework, under DDP and with CSER: what changes is what the documents say, and both survive a kill."""

import contextlib
import difflib
import functools
import io
import os
import re
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

from tests.integrations.workers import DEATH, alike, die
from tests.processes import run_processes

ROOT = Path(__file__).parents[2]
FILES = DDP, OWN = ROOT / "examples" / "own_loop_ddp.py", ROOT / "examples" / "own_loop.py"
ADOPT, README = ROOT / "docs" / "adopt.md", ROOT / "README.md"
STEPS, EVERY, KILLED_AFTER = 32, 8, 21


def changes() -> list[str]:
    """The lines of the diff that takes the one file to the other, from `-` or `+` on, blank ones included."""
    diff = difflib.unified_diff(*(file.read_text().splitlines() for file in FILES), n=0, lineterm="")
    return [line for line in list(diff)[2:] if not line.startswith("@@")]


def check_told(page: str) -> None:
    """A page says how many lines are new or other; the diff of docs/adopt.md is the files'."""
    (told,) = re.findall(r"\*\*(\d+) lines\*\*", page)
    assert int(told) == sum(line.startswith("+") for line in changes()) <= 6
    for shown in re.findall(r"^```diff\n(.*?)^```", page, re.MULTILINE | re.DOTALL):
        assert [line for line in shown.splitlines() if line and not line.startswith("@@")] == changes()


def run(file: Path, out: Path, killed: bool = False) -> Callable[[], dict[str, Any]]:
    """The program as torchrun runs it, on one rank; `killed`: rank 1 dies between two checkpoints."""

    def work() -> dict[str, Any]:
        steps = 0

        def count(*_: object) -> None:
            nonlocal steps
            steps += 1
            if killed and steps == KILLED_AFTER and os.environ["RANK"] == "1":
                die()

        register_optimizer_step_post_hook(count)
        sys.argv = [file.name, "--out", str(out), "--steps", str(STEPS), "--every", str(EVERY)]
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            ended = runpy.run_path(str(file), run_name="__main__")
        optimizer = ended["optimizer"]
        found = {
            "model": ended["raw"].state_dict(),
            "optimizer": optimizer.state_dict(),
            "scheduler": ended["scheduler"].state_dict(),
        }
        if file == OWN:
            ledger, d = optimizer.communicator.ledger, optimizer.flat.numel
            # the check of seeds comes again after a resume, outside the ratio
            found["sent"] = {
                k: (each.bytes, each.collectives) for k, each in ledger.entries.items() if k != "seed-check"
            }
            # by the definition of a ratio: fp32 values of a ring all-reduce among two workers, in every step
            found["ratio"] = 4 * d * STEPS / ledger.total(in_ratio=True).bytes
        return {"end": found, "said": printed.getvalue().splitlines(), "steps": steps}

    return work


Run = tuple[Path, list[dict[str, Any]]]
both_files = pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], Run]:
    """Of a file, the folder of a run that nobody interrupts, and what its two ranks ended with."""

    @functools.cache
    def of(file: Path) -> Run:
        out = tmp_path_factory.mktemp(file.stem)
        return out, run_processes(2, run(file, out), 120, joined=False)

    return of


def loss_of_frequencies() -> float:
    """The loss on the held-out bytes of who knows how often each byte comes, and nothing of their order."""
    import argparse
    import inspect

    text = torch.tensor(list(inspect.getsource(argparse).encode()))
    frequencies = (torch.bincount(text[:-4096], minlength=256) + 1).double()
    return float(-(frequencies / frequencies.sum()).log()[text[-4096:]].mean())


@pytest.mark.parametrize("page", [ADOPT, README], ids=lambda page: page.name)
def test_the_documents_have_the_number_of_changed_lines(page: Path) -> None:
    """Six at most, and the diff that docs/adopt.md shows is that of the two files."""
    check_told(page.read_text())


def test_another_number_would_be_noticed() -> None:
    """In either direction, and so would a line that the diff leaves out."""
    page = ADOPT.read_text()
    (told,) = re.findall(r"\*\*(\d+) lines\*\*", page)
    for other in (int(told) - 1, int(told) + 1):
        with pytest.raises(AssertionError):
            check_told(page.replace(f"**{told} lines**", f"**{other} lines**"))
    with pytest.raises(AssertionError):
        check_told(page.replace(changes()[0], ""))


@both_files
def test_a_killed_run_goes_on_bit_for_bit(file: Path, whole: Callable[[Path], Run], tmp_path: Path) -> None:
    """Started again as before, each rank ends with the model, moments, rate and bytes of the run that nobody killed."""
    _, parts = whole(file)
    with pytest.raises(RuntimeError, match=DEATH):
        run_processes(2, run(file, tmp_path, killed=True), 120, joined=False)
    resumed = run_processes(2, run(file, tmp_path), 120, joined=False)
    for one, other in zip(parts, resumed, strict=True):
        assert alike(one["end"], other["end"])
        assert other["steps"] == STEPS - KILLED_AFTER // EVERY * EVERY, "resumed at the last checkpoint"
    assert resumed[0]["said"] == parts[0]["said"][-len(resumed[0]["said"]) :]
    assert len(resumed[0]["said"]) == 2


@both_files
def test_it_learns_more_than_frequencies(file: Path, whole: Callable[[Path], Run]) -> None:
    """And `model.pt` holds the model that the last loss is of: with CSER, the average, which is no worker's own."""
    out, parts = whole(file)
    found = [float(re.fullmatch(r"step \d+: loss ([\d.]+) on held-out bytes", line)[1]) for line in parts[0]["said"]]  # type: ignore[index]
    assert len(found) == STEPS // EVERY
    assert found[0] > found[-1]
    assert found[-1] < loss_of_frequencies()
    saved, (a, b) = torch.load(out / "model.pt"), (part["end"]["model"] for part in parts)
    for name, value in saved.items():
        assert torch.equal(value, a[name] / 2 + b[name] / 2)
    apart = [name for name in saved if not torch.equal(a[name], b[name])]
    assert apart == ([name for name in saved if name != "reserved"] if file == OWN else [])


def test_the_ratio_is_what_was_asked(whole: Callable[[Path], Run]) -> None:
    """One block in 4 every 4 steps, by each rank's ledger."""
    for part in whole(OWN)[1]:
        assert part["end"]["ratio"] == pytest.approx(16, rel=0.01)


def test_torchrun_starts_it(tmp_path: Path) -> None:
    """As the file says."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(OWN)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, "--steps", "4", "--every", "4", "--out", str(tmp_path)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(r"step 4: loss [\d.]+ on held-out bytes\n", done.stdout), done.stdout
