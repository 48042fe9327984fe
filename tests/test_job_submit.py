"""The same study, unchanged, as a job on a cluster that asks for a token."""

import json
import shlex
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import pytest
import yaml

from cser_ray.bench.hosts.ray_session import PROGRAMS, session
from cser_ray.budget import Structure
from cser_ray.config import RunConfig
from cser_ray.store.read import read_runs
from tests.ray_nodes import gone
from tests.tuning.command_line import cli
from tuning.take_home.reproduce import job_command, recorded_config, settings_of_run

pytestmark = pytest.mark.ray

STUDY = "--methods sgd,cser-pl --ratios 4 --steps 16 --lrs .05 --repeats 2 --trials 2 --workers 2 --distributed 1"
TOKEN = "0123456789abcdef" * 4


def free_ports(count: int) -> list[int]:
    """Ports that nothing listens on."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


@dataclass(frozen=True)
class Head:
    """A running head node."""

    base: Path
    environment: dict[str, str]
    url: str
    process: subprocess.Popen[bytes]

    def ray(self, *arguments: str, token: str = TOKEN) -> subprocess.CompletedProcess[str]:
        """`ray ...` on this machine, as somebody who knows the token."""
        (self.base / "asked").write_text(token)
        environment = self.environment | {"RAY_AUTH_TOKEN_PATH": str(self.base / "asked")}
        command = [str(PROGRAMS / "ray"), *arguments]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)

    def as_kuberay(self, job: str) -> subprocess.CompletedProcess[str]:
        """What KubeRay's submitter does with a RayJob: a shell's `ray job submit`, the token in RAY_AUTH_TOKEN."""
        spec = yaml.safe_load(job)["spec"]
        runtime = shlex.quote(json.dumps(yaml.safe_load(spec["runtimeEnvYAML"])))
        line = f"ray job submit --address {self.url} --runtime-env-json {runtime} -- {spec['entrypoint']}"
        known = {name: value for name, value in self.environment.items() if name != "RAY_AUTH_TOKEN_PATH"}
        known |= {"RAY_AUTH_TOKEN": TOKEN, "HOME": str(self.base / "nobody")}  # where no file has the token
        return subprocess.run(["bash", "-c", line], env=known, capture_output=True, text=True, timeout=300)

    def status(self, token: str | None) -> int:
        """What the jobs API answers."""
        request = urllib.request.Request(f"{self.url}/api/jobs/")
        if token is not None:
            request.add_header("Authorization", f"Bearer {token}")
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            return error.code
        except OSError:
            return 0


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    """`ray start --head --block` with token authentication, on ports of its own; ended by its pid."""
    port, dashboard, client, agent = free_ports(4)
    with session() as (base, environment):
        (base / "token").write_text(TOKEN)
        (base / "token").chmod(0o600)
        environment |= {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(base / "token"),
            "RAY_ADDRESS": f"127.0.0.1:{port}",  # of every process of this node: see cser_ray.train.cluster
        }
        command = [
            *(str(PROGRAMS / "ray"), "start", "--head", "--block", "--disable-usage-stats", "--num-cpus", "2"),
            *("--node-ip-address", "127.0.0.1", "--port", str(port), "--temp-dir", str(base)),
            *("--dashboard-host", "127.0.0.1", "--dashboard-port", str(dashboard)),
            *("--ray-client-server-port", str(client), "--dashboard-agent-listen-port", str(agent)),
        ]
        with (base / "log").open("wb") as log:
            process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        started = Head(base, environment, f"http://127.0.0.1:{dashboard}", process)
        try:
            deadline = time.monotonic() + 120
            while started.status(TOKEN) != 200:
                assert process.poll() is None, (base / "log").read_text()
                assert time.monotonic() < deadline, (base / "log").read_text()
                time.sleep(0.2)
            yield started
        finally:
            process.send_signal(signal.SIGINT)  # SIGTERM would first drain the node for up to 30 s
            try:
                process.wait(timeout=20)
            except (
                subprocess.TimeoutExpired
            ):  # a shell has started the tests in the background: SIGINT is ignored there
                process.terminate()
                process.wait(timeout=60)
            assert gone(base)


def test_the_study_runs_as_a_job(head: Head, tmp_path: Path) -> None:
    """`ray job submit -- cser-ray tune ...` ends with code 0, shows the table, and leaves every row.

    Also where the job sets variables that we set too.
    """
    out = tmp_path / "study"
    command = ["cser-ray", "tune", *STUDY.split(), "--evaluations", "2", "--out", str(out)]
    ours = '{"env_vars": {"RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.1", "OMP_NUM_THREADS": "1"}}'
    done = head.ray("job", "submit", "--address", head.url, "--runtime-env-json", ours, "--", *command)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Test accuracy, %" in done.stdout
    runs = read_runs(str(out))
    assert set(runs["status"]) == {"FINISHED"}
    assert runs.groupby(["rung", "method"]).size().to_dict() == {
        ("virtual", "sgd"): 2,
        ("virtual", "cser-pl"): 3,
        ("distributed", "cser-pl"): 1,
    }


def test_the_command_of_best_is_a_job(head: Head, tmp_path: Path) -> None:
    """What `cser-ray best` prints for a cluster runs as it stands, on real workers, with every setting of the run."""
    structure = Structure(2, 4, 8)
    config = RunConfig(method="cser", ratio=4.0, **asdict(structure), workers=2, steps=8, evaluations=1, repeat=1)
    command = job_command(settings_of_run(config))
    assert command is not None
    program, *words = shlex.split(command.replace("\\\n", " "))
    assert (program, words[:2]) == ("ray", ["job", "submit"])
    out = tmp_path / "trained"
    done = head.ray("job", "submit", "--address", head.url, *words[2:], "--out", str(out))
    assert done.returncode == 0, done.stdout + done.stderr
    (row,) = read_runs(str(out)).itertuples()
    assert (row.status, row.processes) == ("FINISHED", 2)
    assert recorded_config(row.config_json) == replace(config, rung="distributed")


def test_the_entrypoint_of_a_rayjob_is_a_job(head: Head, tmp_path: Path) -> None:
    """Of `tune --print rayjob`, with its environment and with the token in a variable, as KubeRay hands it over."""
    out = tmp_path / "a study"
    virtual = STUDY.replace("--distributed 1", "--distributed 0")  # on real workers: above
    job = cli("tune", *virtual.split(), "--evaluations", "1", "--out", str(out), "--package", "", "--print", "rayjob")
    assert job.exit_code == 0, job.output
    done = head.as_kuberay(job.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
    runs = read_runs(str(out))
    assert runs.groupby("method").size().to_dict() == {"sgd": 2, "cser-pl": 3}
    assert set(runs["status"]) == {"FINISHED"}


@pytest.mark.parametrize(("token", "status"), [(TOKEN, 200), (TOKEN[::-1], 403), (None, 401)])
def test_the_token_is_asked_for(head: Head, token: str | None, status: int) -> None:
    """With it the jobs API answers; with another one, or none, it does not."""
    assert head.status(token) == status


def test_a_wrong_token_submits_nothing(head: Head, tmp_path: Path) -> None:
    """`ray job submit` is refused, and nothing runs."""
    mark = tmp_path / "ran"
    done = head.ray("job", "submit", "--address", head.url, "--", "touch", str(mark), token=TOKEN[::-1])
    assert done.returncode != 0
    assert "403" in done.stdout + done.stderr or "token" in (done.stdout + done.stderr).lower()
    assert not mark.exists()
