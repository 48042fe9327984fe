"""The RayJob of `tune --print rayjob` and `best --to rayjob`: what KubeRay takes, and the very command that was asked for."""

import shlex
from pathlib import Path
from typing import Any

import pytest
import ray
import yaml
from jsonschema import ValidationError, validate

from cser_ray.commands.cli import main
from cser_ray.commands.options import settings_of
from cser_ray.config import RunConfig
from tests.tuning.command_line import cli, error_of
from tests.tuning.rayjob_schema import RAYJOB
from tests.tuning.trained import trained
from tuning.execute.single import single_config
from tuning.study.defaults import with_task_defaults
from tuning.study.study import Study
from tuning.take_home.rayjob import Pods, rayjob
from tuning.take_home.reproduce import settings_of_run

OUT = "s3://bucket/studies/my_digits"


def printed(*arguments: str) -> Any:
    """What `tune --print rayjob` prints, read, and valid."""
    result = cli("tune", *arguments, "--print", "rayjob")
    assert result.exit_code == 0, result.output
    job = yaml.safe_load(result.stdout)
    validate(job, RAYJOB)
    return job


def containers(job: Any) -> tuple[Any, Any]:
    """Of the head and of the workers."""
    cluster = job["spec"]["rayClusterSpec"]
    (workers,) = cluster["workerGroupSpecs"]
    return cluster["headGroupSpec"]["template"]["spec"]["containers"][0], workers["template"]["spec"]["containers"][0]


def study_of(command: str) -> tuple[Study, dict[str, Any]]:
    """The study that `cser-ray tune ...` would run, and all that was said."""
    program, name, *arguments = shlex.split(command)
    assert (program, name) == ("cser-ray", "tune")
    context = main.commands["tune"].make_context("tune", arguments)
    with context:
        settings = settings_of(context, dict(context.params))
        return Study(**with_task_defaults(Study, settings)), settings


@pytest.mark.parametrize(
    "said",
    [
        "--ratios 16,64 --methods sgd,cser-pl --lrs .05,.1 --workers 4 --budget 2h",
        "--task mnist1d --steps 64 --distributed 0 --checkpoint-s 0 --transfer-lrs --scheduler hyperband",
        "--methods sgd,partial-reset --compressors grbs,top-k/4096:int2@two-way --residuals .25,.5 --compile",
    ],
)
def test_a_job_tunes_as_the_command_would(said: str) -> None:
    """Its entrypoint has every option that was given, and no option of the job itself."""
    expected, settings = study_of(f"cser-ray tune {said} --out {OUT}")
    study, found = study_of(
        printed(*said.split(), "--out", OUT, "--image", "mine:1", "--package", "")["spec"]["entrypoint"]
    )
    assert (study, found) == (expected, settings)


def test_a_file_of_settings_is_spelled_out(tmp_path: Path) -> None:
    """It lies on this machine and not on the cluster: the entrypoint has what it says, a flag that is off left out."""
    (tmp_path / "study.yaml").write_text("ratios: [16, 64]\nmethods: [sgd, csea]\ntransfer-lrs: false\nseed: 3\n")
    entrypoint = printed("--config", str(tmp_path / "study.yaml"), "--out", OUT)["spec"]["entrypoint"]
    assert study_of(entrypoint)[0] == Study(ratios=(16.0, 64.0), methods=("sgd", "csea"), seed=3)
    assert "study.yaml" not in entrypoint


def test_nothing_is_run(tmp_path: Path) -> None:
    """No folder is made, no Ray started."""
    printed("--out", str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()
    assert not ray.is_initialized()


def test_a_worker_is_a_pod() -> None:
    """As many pods as workers, with the CPUs and GPUs of its processes; the head has room for none."""
    said = "--workers 3 --processes-per-worker 2 --cpus-per-worker 4 --pod-gpus 2"
    job = printed(*said.split(), "--out", OUT)
    (group,) = job["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    assert [group[f"{which}eplicas"] for which in ("r", "minR", "maxR")] == [3, 3, 3]
    limits = containers(job)[1]["resources"]["limits"]
    assert int(limits["cpu"]) >= 2 * 4
    assert limits["nvidia.com/gpu"] == "2"
    assert job["spec"]["rayClusterSpec"]["headGroupSpec"]["rayStartParams"] == {"num-cpus": "0"}


def test_a_study_without_real_workers_has_one_pod() -> None:
    """Its virtual workers live in one process a trial."""
    (group,) = printed("--distributed", "0", "--out", OUT)["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    assert group["replicas"] == 1


@pytest.mark.parametrize(("gpus", "kind"), [("0", ""), ("1", "-gpu")])
def test_the_image_is_of_this_ray(gpus: str, kind: str) -> None:
    """Of this Python too: Ray refuses others than the cluster's; `--image` takes another."""
    for container in containers(printed("--out", OUT, "--pod-gpus", gpus)):
        assert container["image"].startswith(f"rayproject/ray:{ray.__version__}-py3")
        assert container["image"].endswith(kind)
    for container in containers(printed("--out", OUT, "--image", "registry/mine:7")):
        assert container["image"] == "registry/mine:7"


def test_the_cluster_ends_with_its_job_and_asks_for_a_token() -> None:
    """So that nobody pays for it afterwards, and nobody else runs code on it."""
    spec = printed("--out", OUT)["spec"]
    assert (spec["shutdownAfterJobFinishes"], spec["ttlSecondsAfterFinished"] > 0) == (True, True)
    assert spec["rayClusterSpec"]["authOptions"] == {"mode": "token"}


def test_pip_installs_the_package() -> None:
    """This version, or what `--package` says; nothing where it is empty, as of an image that has it."""
    installed = yaml.safe_load(printed("--out", OUT)["spec"]["runtimeEnvYAML"])
    assert installed["pip"][0].startswith("cser-ray==")
    assert installed["env_vars"]["RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"] == "0.2"
    git = "cser-ray @ git+https://example.org/cser-ray"
    assert yaml.safe_load(printed("--out", OUT, "--package", git)["spec"]["runtimeEnvYAML"])["pip"] == [git]
    assert "pip" not in yaml.safe_load(printed("--out", OUT, "--package", "")["spec"]["runtimeEnvYAML"])


def test_keys_are_in_a_secret() -> None:
    """S3's come from one that the comments name, and stand nowhere in the file; a shared volume needs none."""
    job = printed("--out", OUT)
    assert [c["envFrom"] for c in containers(job)] == [[{"secretRef": {"name": "cser-ray-storage"}}]] * 2
    assert all("AWS" not in str(c["env"]) for c in containers(job))
    assert "kubectl create secret generic cser-ray-storage" in cli("tune", "--out", OUT, "--print", "rayjob").stdout
    assert all("envFrom" not in c for c in containers(printed("--out", "/shared/digits")))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("", "--out is needed: a job's own folder goes with its pods; take s3://bucket/name"),
        ("--out results/digits", "--out results/digits is relative, and a job's own folder goes with its pods"),
        ("--out s3://KEY:SECRET@bucket/x", "--out holds a key, and this file is to be shared"),
        ("--out s3://b/x --start-from results/old", "--start-from results/old is relative"),
        ("--out s3://b/$HOME", "a job's entrypoint goes through two shells"),
        ("--out s3://b/x --processes-per-worker 4 --pod-gpus 1", "1 GPUs a pod: each of the 4 processes"),
    ],
)
def test_what_would_be_lost_is_refused(arguments: str, message: str) -> None:
    """With the way out, and without YAML."""
    assert message in error_of("tune", *arguments.split(), "--print", "rayjob")


@pytest.mark.parametrize("arguments", [("--pod-gpus", "1"), ("--image", "x"), ("--package", "y")])
def test_an_option_of_a_job_without_one_is_an_error(arguments: tuple[str, str]) -> None:
    """It would be ignored."""
    assert f"{arguments[0]} is of a RayJob: add --print rayjob" in error_of("tune", *arguments)


def test_best_as_a_job_trains_the_chosen_run(tmp_path: Path) -> None:
    """On real workers, every setting spelled out, to a folder that outlives the pods."""
    study = Study(methods=("sgd", "cser"), ratios=(4.0,), workers=2, steps=8, evaluations=1)
    folder = trained(tmp_path / "study", study, keep="none")
    result = cli("best", folder, "--ratio", "4", "--method", "cser", "--to", "rayjob", "--out", OUT)
    assert result.exit_code == 0, result.output
    job = yaml.safe_load(result.stdout)
    validate(job, RAYJOB)
    program, name, *arguments = shlex.split(job["spec"]["entrypoint"])
    assert (program, name) == ("cser-ray", "train")
    context = main.commands["train"].make_context("train", arguments)
    with context:
        settings = settings_of(context, dict(context.params))
        config = single_config(settings)
    assert (config.rung, config.method, config.workers, settings["out"]) == ("distributed", "cser", 2, OUT)
    assert job["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["replicas"] == 2
    assert "relative" in error_of("best", folder, "--ratio", "4", "--to", "rayjob", "--out", "job.yaml")
    assert "add --to rayjob" in error_of("best", folder, "--ratio", "4", "--pod-gpus", "1")


def test_what_only_the_user_has_is_said() -> None:
    """A module, a folder of data and a volume have to be in the pods."""
    settings = settings_of_run(
        RunConfig(task="my_task:Mine", data_dir="/data/mine", reset_interval=16, reset_ratio=16.0)
    )
    text = rayjob("cser-ray train --distributed", settings | {"out": "/shared/x"}, Pods(8))
    comments = [line for line in text.splitlines() if line.startswith("# ")]
    for said in (
        "my_task:Mine is a module of yours",
        "/data/mine is a path in the pods",
        "/shared/x is to lie on a volume",
    ):
        assert any(said in comment for comment in comments)
    validate(yaml.safe_load(text), RAYJOB)


def test_the_schema_finds_a_misspelt_field() -> None:
    """A field that the CRD does not have, and a value of another type, are errors."""
    job = printed("--out", OUT)
    for change in ({"ttlSecondsAfterFinish": 5}, {"ttlSecondsAfterFinished": "600"}):
        with pytest.raises(ValidationError):
            validate(job | {"spec": job["spec"] | change}, RAYJOB)


@pytest.mark.parametrize("out", ["s3://bucket/" + "Long_Name." * 9, "s3://bucket/", "/a/--b--/"])
def test_any_folder_makes_a_name(out: str) -> None:
    """One that Kubernetes takes, at most as long as KubeRay's."""
    assert printed("--out", out)["metadata"]["name"].startswith("cser-ray-tune")
