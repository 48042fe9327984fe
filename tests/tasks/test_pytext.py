import math
from pathlib import Path

import pytest
import torch

from cser_ray.tasks import make_task, pytext


def text(part: pytext.Windows) -> str:
    return "".join(("\0" + pytext.SYMBOLS)[symbol] for symbol in part.text[:3000].tolist())


@pytest.fixture(scope="module")
def splits() -> pytext.Splits:
    return pytext.load()


def test_a_sample_is_a_window_and_the_window_moved_on_by_one(splits: pytext.Splits) -> None:
    """Inputs and targets int64 [rows, b, 64]; target k is input k + 1."""
    inputs, targets = splits.train.batch(torch.tensor([[0, 5, 1], [2, 9, 40]]))
    assert inputs.shape == targets.shape == (2, 3, 64)
    assert inputs.dtype == targets.dtype == torch.int64
    assert inputs[..., 1:].equal(targets[..., :-1])


def test_neighbouring_windows_do_not_overlap(splits: pytext.Splits) -> None:
    """Window 1 begins where window 0 ends, so an epoch reads each character once."""
    inputs, targets = splits.train.batch(torch.tensor([[0, 1]]))
    assert inputs[0, 1, 0] == targets[0, 0, -1]


def test_the_last_window_is_whole(splits: pytext.Splits) -> None:
    """Every split's last sample can be read."""
    for part in (splits.train, splits.validation, splits.test):
        assert part.batch(torch.tensor([[len(part) - 1]]))[1].shape == (1, 1, 64)


def test_it_is_python(splits: pytext.Splits) -> None:
    """The training text decodes to source code."""
    assert "import " in text(splits.train)


def test_encoding_knows_newlines_and_ascii_and_calls_the_rest_zero() -> None:
    """Newline is 1, space 2, and a tab or a byte beyond ASCII 0; a carriage return before a newline is dropped."""
    assert pytext.encode("\n ~\té\r\n".encode()).tolist() == [1, 2, 96, 0, 0, 0, 1]


def test_a_module_is_in_one_split_whatever_the_others_are() -> None:
    """The split follows from the name, and takes about 6 % of the modules for each held-out part."""
    parts = [pytext.part_of(Path(f"package/module{i}.py")) for i in range(1000)]
    assert 30 < parts.count("validation") < 90
    assert 30 < parts.count("test") < 90
    assert parts == [pytext.part_of(Path("package") / f"module{i}.py") for i in range(1000)]


def test_tests_and_site_packages_are_left_out_and_the_rest_is_sorted(tmp_path: Path) -> None:
    """Of a small library, the modules that are its own, by name."""
    for name in (
        "b.py",
        "a/z.py",
        "a/test/t.py",
        "site-packages/x.py",
        "_sysconfigdata_linux.py",
        "a/__init__.py",
        "c.so",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert pytext.modules(tmp_path) == [Path("a/__init__.py"), Path("a/z.py"), Path("b.py")]


def test_a_python_without_sources_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """FileNotFoundError names the folder looked in and the way out."""
    monkeypatch.setattr(pytext.sysconfig, "get_paths", lambda: {"stdlib": str(tmp_path)})
    with pytest.raises(
        FileNotFoundError, match=r"holds too few \(0 for train, .*\): run under a Python installed with its \.py"
    ):
        pytext.load.__wrapped__()


def test_the_constant_loss_is_the_unigram_entropy(splits: pytext.Splits) -> None:
    """Cross-entropy of predicting the training frequencies everywhere, over the training text; far under ln 97."""
    frequencies = torch.bincount(splits.train.text.long(), minlength=97) / len(splits.train.text)
    expected = -frequencies.log()[splits.train.text.long()].double().mean()
    assert make_task("pytext").constant_loss() == pytest.approx(float(expected), abs=1e-4)
    assert 2.5 < float(expected) < math.log(97)


def test_reading_again_gives_the_same_hash() -> None:
    """The content hash is stable while the Python is the same."""
    before = make_task("pytext").content_hash()
    pytext.load.cache_clear()
    assert make_task("pytext").content_hash() == before


def test_the_model_sees_no_future() -> None:
    """Changing character 40 changes no logits before position 40, and those at it."""
    torch.manual_seed(0)
    model = make_task("pytext").model()
    one = torch.randint(0, 97, (1, 64))
    other = one.clone()
    other[0, 40] = (other[0, 40] + 1) % 97
    difference = (model(one) - model(other)).abs().amax(-1)[0]
    assert difference[:40].max() == 0
    assert difference[40:].min() > 0


def test_the_model_is_small() -> None:
    """33 825 parameters; logits over 97 symbols at each of 64 positions."""
    model = make_task("pytext").model()
    assert sum(p.numel() for p in model.parameters()) == 33_825
    assert model(torch.zeros(2, 64, dtype=torch.long)).shape == (2, 64, 97)
