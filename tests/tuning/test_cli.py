"""The command line without Ray: what a user gets wrong is answered in a sentence, what is right is done."""

from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

from cser_ray.budget import METHOD_BUDGETS
from cser_ray.cli import _settings, main
from cser_ray.results import read_history, read_runs
from cser_ray.store import Store
from cser_ray.tasks import TASKS
from tuning.study import Study


def cli(*arguments: str) -> Result:
    """The command, run in this process."""
    return CliRunner().invoke(main, arguments)


def error_of(*arguments: str) -> str:
    """What a command that must fail says; a traceback would not do."""
    result = cli(*arguments)
    assert result.exit_code != 0
    assert isinstance(result.exception, SystemExit), result.exception
    return result.output.partition("Error: ")[2].replace("\n", " ")


def settings_of(tmp_path: Path, text: str, *arguments: str, command: str = "tune") -> dict[str, Any]:
    """The settings that a command would run with, given the text of a file and arguments."""
    path = tmp_path / "study.yaml"
    path.write_text(text)
    context = main.commands[command].make_context(command, [*arguments, "--config", str(path)])
    with context:
        return _settings(context, dict(context.params))


# ---------------------------------------------------------------------------------------------------------------- typos


def test_a_wrong_method_names_the_known_ones() -> None:
    """All of them, and the one that was probably meant."""
    said = error_of("tune", "--methods", "cser,csr")
    assert "there is no method 'csr'; did you mean 'cser'?" in said
    assert all(method in said for method in METHOD_BUDGETS)
    assert "there is no method 'ef_sgd'; did you mean 'ef-sgd'?" in error_of("train", "--method", "ef_sgd")


@pytest.mark.parametrize("command", ["tune", "train"])
def test_a_wrong_task_names_the_known_ones(command: str) -> None:
    """And how to name one's own."""
    said = error_of(command, "--task", "minst1d")
    assert "there is no task 'minst1d': did you mean 'mnist1d'?" in said
    assert all(task in said for task in TASKS)
    assert "module.path:ClassName" in said


def test_a_wrong_key_of_the_file_names_the_known_ones(tmp_path: Path) -> None:
    """With the file."""
    with pytest.raises(ValueError, match=r"study.yaml: there is no setting 'method'; did you mean 'methods'\? Known: "):
        settings_of(tmp_path, "method: cser")


def test_a_wrong_name_in_the_file_names_the_known_ones(tmp_path: Path) -> None:
    """A method in the file is checked like one on the command line."""
    with pytest.raises(click.BadParameter, match="there is no method 'csr'; did you mean 'cser'"):
        settings_of(tmp_path, "methods: [sgd, csr]")


# ----------------------------------------------------------------------------------------------------------------- file


def test_flags_over_file_over_defaults(tmp_path: Path) -> None:
    """What is given on the command line wins, then the file; the rest has its default."""
    settings = settings_of(tmp_path, "workers: 4\nrepeats: 5\nsteps: 99", "--workers", "2", "--seed", "7")
    assert (settings["workers"], settings["repeats"], settings["steps"]) == (2, 5, 99)
    assert (settings["seed"], settings["trials"], settings["task"]) == (7, 1, "digits")


def test_a_flag_at_its_default_still_beats_the_file(tmp_path: Path) -> None:
    """It was said, so it counts."""
    assert settings_of(tmp_path, "workers: 4", "--workers", "8")["workers"] == 8


def test_the_files_values_become_what_flags_become(tmp_path: Path) -> None:
    """Lists as YAML lists or as commas; keys with hyphens or underscores; switches as yes or no."""
    text = "methods: [sgd, cser]\nratios: 16\nlrs: .05,.1\nblock-order: cyclic\nbatch_size: 4\ncoarse-labels: yes"
    settings = settings_of(tmp_path, text)
    assert settings["methods"] == ("sgd", "cser")
    assert (settings["ratios"], settings["lrs"]) == ((16.0,), (0.05, 0.1))
    assert (settings["block_order"], settings["batch_size"], settings["coarse_labels"]) == ("cyclic", 4, True)


def test_what_is_not_given_is_not_set(tmp_path: Path) -> None:
    """Neither a flag nor a line of the file: the study's own default, or the task's, applies later."""
    assert settings_of(tmp_path, "").keys().isdisjoint({"steps", "batch_size", "methods", "ratios", "lrs", "config"})


@pytest.mark.parametrize("key", ["workers", "task", "steps", "cpus-per-worker"])
def test_a_key_without_a_value_is_not_given(tmp_path: Path, key: str) -> None:
    """`workers:` and nothing behind it leaves the default."""
    assert settings_of(tmp_path, f"{key}:") == settings_of(tmp_path, "")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("workers: many", "'many' is not a valid integer"),
        ("repeats: 1.5", "'1.5' is not a valid integer"),
        ("ratios: [16, lots]", "'16,lots' is not a comma-separated list of numbers"),
        ("momentum: high", "'high' is not a valid float"),
        ("block_order: sorted", "'sorted' is not one of 'random', 'permuted', 'cyclic'"),
        ("- workers\n- methods", "holds no mapping of settings"),
        ("just words", "holds no mapping of settings"),
        ("workers: [1, 2", "study.yaml is not YAML"),
        ("config: other.yaml", "there is no setting 'config'"),
    ],
)
def test_wrong_types_in_the_file(tmp_path: Path, text: str, message: str) -> None:
    """The value, and what it should be."""
    path = tmp_path / "study.yaml"
    path.write_text(text)
    assert message in error_of("tune", "--config", str(path))


def test_a_missing_file() -> None:
    """Its name."""
    assert "'nowhere.yaml' does not exist" in error_of("tune", "--config", "nowhere.yaml")


# ----------------------------------------------------------------------------------------------------- tune, before Ray


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--ratios", "16,0.5"), "R_C = 0.5: a ratio is dense bytes over the bytes sent; ask for 1 or more"),
        (("--ratios", "16,16"), "ratios names 16 twice"),
        (("--ratios", "a"), "'a' is not a comma-separated list of numbers"),
        (("--lrs", "0"), "A learning rate is positive, not 0.0"),
        (("--repeats", "0"), "repeats must be at least 1, not 0"),
        (("--momentum", "1"), "momentum lies in [0, 1)"),
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
        ("--method cser --ratio 16 --reset-interval 4 --reset-ratio 8 --gradient-ratio 7", "that costs 5.74359"),
        ("--reset-interval 0", "H counts steps"),
        ("--lr 0", "A learning rate is positive, not 0.0"),
        ("--repeat -1", "repeat must be at least 0"),
        ("--workers 0", "workers must be a whole number of at least 1, not 0"),
        ("--schedule linear", "'linear' is not one of 'step', 'cosine', 'constant'"),
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
        ("--method sgd", "sgd at R_C = 1 (H=1 RC1=1)"),
        ("--method no-sync", "no-sync at R_C = inf (H=1 RC1=1)"),
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
