import subprocess
import sys
from pathlib import Path

import pytest

from cser_ray.tasks import TASKS, make_task

OWN = """
from cser_ray.tasks.digits import Digits

class Own(Digits):
    name = "own"

    def __init__(self, data_dir: str = "nowhere") -> None:
        self.data_dir = data_dir

class Empty:
    name = "empty"
"""


@pytest.fixture
def own_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "tasks_of_my_own.py").write_text(OWN)
    (tmp_path / "tasks_that_fail.py").write_text("import a_package_that_is_not_installed")
    monkeypatch.syspath_prepend(tmp_path)
    return "tasks_of_my_own"


@pytest.mark.parametrize("name", TASKS)
def test_every_task_says_what_it_is(name: str) -> None:
    """A task bears its own name, a one-line description, a batch size, a model's name and a number of classes."""
    task = make_task(name)
    assert task.name == name
    assert 20 < len(TASKS[name].description) < 120
    assert "\n" not in TASKS[name].description
    assert task.model_name
    assert task.classes >= 10


@pytest.mark.parametrize(("name", "batch_size"), [("digits", 16), ("pytext", 16), ("cifar100", 16), ("imagenet", 32)])
def test_default_batches_a_worker(name: str, batch_size: int) -> None:
    """16 samples, and 32 on imagenet, as in the paper's runs."""
    assert make_task(name).batch_size == batch_size


def test_an_unknown_task_names_the_known() -> None:
    """The error lists every task and proposes the nearest."""
    with pytest.raises(
        ValueError, match=r"no task 'cifar10'; did you mean 'cifar100'\? Known: digits, mnist1d, pytext"
    ):
        make_task("cifar10")


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("digits", {"model": "resnet18"}, "'digits' has no use for --model .*: leave it out, .*: cifar100, imagenet"),
        ("pytext", {"data_dir": "/data"}, "'pytext' has no use for --data-dir"),
        ("imagenet", {"coarse_labels": True}, "'imagenet' has no use for --coarse-labels .*: cifar100$"),
    ],
)
def test_an_option_that_the_task_would_ignore_is_an_error(name: str, options: dict[str, str], message: str) -> None:
    """The error says which tasks take the option."""
    with pytest.raises(ValueError, match=message):
        make_task(name, **options)


def test_a_task_of_ones_own_needs_no_fork(own_module: str) -> None:
    """module:ClassName is imported, and gets the options that its constructor takes."""
    assert make_task(f"{own_module}:Own").name == "own"
    assert make_task(f"{own_module}:Own", data_dir="here").data_dir == "here"
    with pytest.raises(ValueError, match="no use for --model"):
        make_task(f"{own_module}:Own", model="resnet18")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "no_such_module:Own",
            r"cannot be imported \(No module named 'no_such_module'\): its module must be installed",
        ),
        ("tasks_that_fail:Own", r"cannot be imported \(No module named 'a_package_that_is_not_installed'\)"),
        ("tasks_of_my_own:Onw", "tasks_of_my_own has no class Onw; did you mean Own"),
        ("tasks_of_my_own:Empty", "lacks description, batch_size, model_name, model, splits, constant_loss"),
        ("tasks_of_my_own:", "does not name a task"),
        ("C:/tasks.py:Own", "does not name a task"),
    ],
)
def test_a_task_that_cannot_be_imported_says_why(own_module: str, name: str, message: str) -> None:
    """Module, class and members are each told apart."""
    with pytest.raises(ValueError, match=message):
        make_task(name)


def test_importing_the_tasks_imports_no_data_package() -> None:
    """torchvision, scikit-learn and mnist1d (with matplotlib) wait until a task needs them."""
    heavy = "{'torchvision', 'sklearn', 'mnist1d', 'matplotlib', 'ray'}"
    code = f"import sys, cser_ray.tasks as t; t.make_task('cifar100'); print(sorted({heavy} & set(sys.modules)))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"
