"""The commands without Ray: what cannot be done is refused in a sentence, what is right is done."""

from pathlib import Path

import pytest

from cser_ray.store.read import read_history, read_runs
from cser_ray.store.write import Store
from tests.tuning.command_line import cli, error_of
from tuning.study.study import Study

# ----------------------------------------------------------------------------------------------------- tune, before Ray


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--ratios", "16,0.5"), "R_C = 0.5: a ratio is dense bytes over the bytes sent; ask for 1 or more"),
        (("--ratios", "16,16"), "ratios names 16 twice"),
        (("--ratios", "a"), "'a' is not a comma-separated list of numbers"),
        (("--lrs", "0"), "must be above 0 and finite, not 0.0"),
        (("--repeats", "0"), "repeats must be a whole number of at least 1, not 0"),
        (("--momentum", "1"), "momentum must be at least 0 and below 1"),
        (("--workers", "100"), "100 workers share 1200 training samples, 12 each: too few for a batch of 16. Take at "
         "most 75 workers, or a smaller batch size"),
        (("--methods", "local-sgd", "--ratios", "7.5"), "the nearest are 7 (H = 7, RC1 = 1) and 8 (H = 8, RC1 = 1)"),
        (("--model", "densenet121"), "the task 'digits' has no use for --model"),
        (("--task", "cser_ray.nothing:Task"), "cannot be imported"),
    ],
)  # fmt: skip
def test_tune_refuses_what_cannot_be_run(tmp_path: Path, arguments: tuple[str, ...], message: str) -> None:
    """In seconds, with what to change, before anything is started or written."""
    out = tmp_path / "out"
    assert message in error_of("tune", *arguments, "--out", str(out))
    assert not out.exists()


def test_tune_refuses_a_folder_of_something_else(tmp_path: Path) -> None:
    """Results are never mixed with other files."""
    (tmp_path / "thesis.tex").write_text("")
    said = error_of("tune", "--out", str(tmp_path))
    assert "is no results folder: it has no study.json but thesis.tex" in said
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_tune_refuses_a_folder_of_another_study(tmp_path: Path) -> None:
    """It says which settings differ, starts no cluster, and leaves the folder as it is."""
    import ray

    out = str(tmp_path / "out")
    Store(out).write_study({"fingerprint": Study(seed=1).fingerprint()})
    said = error_of("tune", "--repeats", "2", "--out", out)
    assert "holds another study: repeats 3 there, 2 here; seed 1 there, 0 here; choose another --out" in said
    assert not ray.is_initialized()
    assert Store(out).read_study()["fingerprint"]["seed"] == 1


# ---------------------------------------------------------------------------------------------------------------- train


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--method cser-pl --ratio 7 --reset-interval 8", "R_C = 7 cannot be met with H = 8 and no gradient sync (RC1 "
         "would be 0.875); the nearest are 7 (H = 7, RC1 = 1) and 8 (H = 8, RC1 = 1)"),
        ("--method cser-pl --ratio 0.5", "ask for 1 (dense) or more"),
        ("--method cser-pl --ratio nan", "ask for 1 (dense) or more"),
        ("--method sgd --ratio 16", "R_C = 16 cannot be met by sgd: it sends the whole gradient every step"),
        ("--method no-sync --ratio 16", "R_C = 16 cannot be met by no-sync: it sends nothing"),
        ("--method local-sgd --ratio 7.5", "the nearest are 7 (H = 7, RC1 = 1) and 8 (H = 8, RC1 = 1)"),
        ("--method ef-sgd --reset-interval 4", "reset_interval = 4 would be ignored by ef-sgd"),
        ("--method cser-pl --gradient-ratio 16", "gradient_ratio = 16 would be ignored by cser-pl"),
        ("--method sgd --residual-in-model 0.5", "residual_in_model = 0.5 would be ignored by sgd: leave it out"),
        ("--method csea --outer-lr 0.5", "outer_lr = 0.5 would be ignored by csea: leave it out"),
        ("--method csea --reset-delay 64 --steps 64", "in the 64 steps of a run no reset would arrive; ask for less"),
        ("--method cser --ratio 16 --reset-interval 4 --reset-ratio 8 --gradient-ratio 7", "that costs 5.74359"),
        ("--reset-interval 0", "reset_interval must be a whole number of at least 1, not 0"),
        ("--lr 0", "must be above 0 and finite, not 0.0"),
        ("--repeat -1", "repeat must be a whole number of at least 0"),
        ("--workers 0", "workers must be a whole number of at least 1, not 0"),
        ("--schedule linear", "there is no schedule 'linear'. Known: step, cosine, constant"),
    ],
)  # fmt: skip
def test_train_refuses_what_is_off_budget(arguments: str, message: str) -> None:
    """A ratio that cannot be met names the nearest that can; a knob that would be ignored is an error."""
    assert message in error_of("train", *arguments.split())


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    """What the file system refuses is a sentence too."""
    (tmp_path / "file").write_text("")
    assert "Not a directory" in error_of("train", "--out", str(tmp_path / "file" / "out"))


@pytest.mark.parametrize(
    ("arguments", "structure"),
    [
        ("", "cser-pl at R_C = 256 (H=16 RC1=16)"),
        ("--method sgd", "sgd (H=1 RC1=1)"),
        ("--method no-sync", "no-sync (H=1 RC1=1)"),
        ("--method cser --ratio 32", "cser at R_C = 32 (H=8 RC1=8 RC2=64)"),
        ("--method cser --ratio 32 --reset-interval 16", "cser at R_C = 32 (H=16 RC1=4 RC2=64)"),
        ("--method cser --reset-interval 4 --reset-ratio 8 --gradient-ratio 32", "cser at R_C = 16 (H=4 RC1=8 RC2=32)"),
        ("--method csea --ratio 7.5", "csea at R_C = 7.5 (H=1 RC1=7.5)"),
        ("--method local-sgd --ratio 13", "local-sgd at R_C = 13 (H=13 RC1=1)"),
        ("--reset-interval 4 --reset-ratio 8", "cser-pl at R_C = 32 (H=4 RC1=8)"),
    ],
)
def test_train_completes_the_structure(arguments: str, structure: str) -> None:
    """From a ratio, from all knobs, or from a ratio and some; the first line says what is trained."""
    result = cli("train", "--steps", "1", "--evaluations", "1", "--workers", "2", *arguments.split())
    assert result.exit_code == 0, result.output
    assert result.output.splitlines()[0] == f"{structure}, lr 0.1, n = 2"


def test_a_tiny_run_says_how_it_went_and_keeps_its_rows(tmp_path: Path) -> None:
    """A line an evaluation, what it reached, what it sent; its row and history in the folder."""
    out = str(tmp_path / "one")
    arguments = ("train", "--steps", "8", "--evaluations", "2", "--ratio", "4", "--workers", "4", "--out", out)
    result = cli(*arguments)
    lines = result.output.splitlines()
    assert [line.split("  ")[0] for line in lines[1:3]] == ["step 4", "step 8"]
    row = read_runs(out).iloc[0]
    assert (row.status, row.stage, row.steps_done, row.workers) == ("FINISHED", "train", 8, 4)
    assert f"test accuracy {row.test_acc:.2f} % of the averaged model" in lines[3]
    assert f"sent {row.bytes_sent / 1e6:.3f} MB a worker" in lines[4]
    assert lines[5] == f"Results: {out}"
    assert len(read_history(out)) == 2


def test_another_run_joins_the_folder_and_the_same_run_replaces_itself(tmp_path: Path) -> None:
    """Single runs share a folder; a repeated one is a new attempt, not a new row."""
    out = str(tmp_path / "one")
    for more in ((), ("--lr", "0.2"), ()):
        arguments = ("--steps", "2", "--evaluations", "1", "--workers", "2", "--out", out)
        assert cli("train", *arguments, *more).exit_code == 0
    runs = read_runs(out)
    assert sorted(zip(runs["lr"], runs["attempt"], strict=True)) == [(0.1, 1), (0.2, 0)]


def test_a_diverged_run_is_called_so() -> None:
    """It is a result, with its numbers."""
    arguments = ("--method", "sgd", "--lr", "1e8", "--steps", "8", "--evaluations", "2", "--workers", "2")
    result = cli("train", *arguments)
    assert result.exit_code == 0, result.output
    assert "diverged: test accuracy" in result.output


# ------------------------------------------------------------------------------------------------------- lists, compare


def points(*arguments: str) -> list[dict[str, str]]:
    """The rows of `cser-ray lattice`."""
    result = cli("lattice", *arguments)
    assert result.exit_code == 0, result.output
    head, *rows = (line.split() for line in result.output.splitlines())
    return [dict(zip(head, row, strict=False)) for row in rows]


@pytest.mark.parametrize(
    ("ratio", "some"), [("13", {"csea", "local-sgd", "cser"}), ("7.5", {"csea", "cser-pl", "cser"})]
)
def test_lattice_of_a_prime_and_of_a_fraction(ratio: str, some: set[str]) -> None:
    """Every point of it costs exactly what was asked for."""
    rows = points("--ratio", ratio)
    assert {row["method"] for row in rows} == some
    assert {row["ratio"] for row in rows} == {ratio}
    for row in rows:
        gradient = 0.0 if row["RC2"] == "-" else 1 / float(row["RC2"])
        assert gradient + 1 / (float(row["RC1"]) * float(row["H"])) == pytest.approx(1 / float(ratio), rel=1e-5)


def test_lattice_in_full_is_longer() -> None:
    """`--all` lists what is thinned out by default."""
    some, every = points("--ratio", "24"), points("--ratio", "24", "--all")
    assert len(some) < len(every)
    assert all(row in every for row in some)


def test_lattice_with_a_model_shows_what_is_realised() -> None:
    """A short last block is sent padded: 8 193 parameters travel as 4 097 blocks of 2."""
    assert {row["ratio"] for row in points("--ratio", "1000")} == {"1000"}
    assert {row["ratio"] for row in points("--ratio", "1000", "--params", "8193")} == {"999.9"}
    assert {row["ratio"] for row in points("--ratio", "1000", "--task", "digits")} == {"1000"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--ratio", "0.5"), "R_C = 0.5"),
        (("--ratio", "16", "--task", "digits", "--params", "5"), "Give --task or --params, not both"),
        (("--ratio", "16", "--params", "0"), "n_params = 0: a model has at least one trainable parameter"),
        (("--ratio", "16", "--task", "digit"), "did you mean 'digits'"),
        (("--ratio", "x"), "'x' is not a valid float"),
    ],
)
def test_lattice_refuses(arguments: tuple[str, ...], message: str) -> None:
    """A sentence, as everywhere."""
    assert message in error_of("lattice", *arguments)


def test_compare_of_a_folder_that_is_not_there(tmp_path: Path) -> None:
    """Says where it looked and what a results folder is; makes nothing."""
    said = error_of("compare", str(tmp_path / "nowhere"))
    assert said.startswith(f"no results at {tmp_path / 'nowhere'}: a results folder holds study.json")
    assert not (tmp_path / "nowhere").exists()


def test_compare_of_single_runs(tmp_path: Path) -> None:
    """Runs of `train` compare like those of a study."""
    out = str(tmp_path / "one")
    for method in ("sgd", "csea"):
        arguments = ("--method", method, "--steps", "2", "--evaluations", "1", "--workers", "2", "--out", out)
        assert cli("train", *arguments).exit_code == 0
    for form in ("table", "csv", "json", "markdown"):
        result = cli("compare", out, "--format", form)
        assert result.exit_code == 0, result.output
        assert "csea" in result.output
    assert cli("compare", out, "--all").output.startswith("Every configuration")


def test_single_runs_that_differ_are_kept_apart(tmp_path: Path) -> None:
    """Another seed or length is another run in the folder; the same command again replaces its own row."""
    out = str(tmp_path / "one")
    for extra in ((), ("--seed", "1"), ("--steps", "4"), ()):
        arguments = ("--method", "csea", "--steps", "2", "--evaluations", "1", "--workers", "2", "--out", out, *extra)
        assert cli("train", *arguments).exit_code == 0
    rows = read_runs(out)
    assert sorted(zip(rows["seed"], rows["steps"], strict=True)) == [(0, 2), (0, 4), (1, 2)]
