"""A command of ours as a RayJob of KubeRay: the YAML that `kubectl apply` takes, with a Ray cluster of its own for it.

Field names and types are those of the CRD ray.io/v1 (KubeRay, ray-operator/config/crd/bases/ray.io_rayjobs.yaml). Token
authentication needs KubeRay 1.5.1.
"""

import math
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from cser_ray.train.cluster import ENVIRONMENT
from tuning.take_home.reproduce import job_words

NAME_LENGTH = 47
"""Of a RayJob: KubeRay makes other names of it."""
SECRET = "cser-ray-storage"
"""Holds what S3 asks for, as environment variables."""
SECONDS_KEPT = 600
"""For which an ended cluster stays, so that its logs can be read."""
RETRIES = 1
"""Of the whole job, with a new cluster: the same command goes on with what its results folder holds."""


@dataclass(frozen=True)
class Pods:
    """The worker pods, one for each real worker.

    Args:
        count: of them.
        processes: of a worker, which share a pod.
        cpus: of each process.
        gpus: of each pod; 0 for workers on CPUs.
        image: of all pods; "" for Ray's own of this version of Ray and Python.
        package: what pip installs in them before the job begins; "" for nothing, where the image has it.

    Raises ValueError for GPUs that are not one for each process.
    """

    count: int
    processes: int = 1
    cpus: float = 1.0
    gpus: int = 0
    image: str = ""
    package: str = ""

    def __post_init__(self) -> None:
        if self.gpus not in (0, self.processes):
            raise ValueError(
                f"{self.gpus} GPUs a pod: each of the {self.processes} processes of a worker trains on one GPU; take "
                f"{self.processes}, or 0 for CPUs"
            )

    @property
    def resources(self) -> dict[str, Any]:
        """Requested and granted alike: Ray counts what it is granted."""
        limits: dict[str, Any] = {
            "cpu": str(self.processes * max(1, math.ceil(self.cpus)) + 1),  # one for Ray's own processes
            "memory": f"{4 + 4 * self.processes * (4 if self.gpus else 1)}Gi",
        }
        if self.gpus:
            limits["nvidia.com/gpu"] = str(self.gpus)
        return {"limits": limits, "requests": dict(limits)}


def rayjob(command: str, settings: Mapping[str, Any], pods: Pods) -> str:
    """The YAML of `command`, such as "cser-ray tune", with options by name, comments first.

    Raises ValueError for an `out` that would go with the pods or holds a key, and for a setting that two shells, one in
    KubeRay's submitter and one on the head node, would read otherwise.
    """
    out = str(settings.get("out") or "")
    check_kept("--out", out)
    for folder in filter(None, str(settings.get("start_from") or "").split(",")):
        check_kept("--start-from", folder)
    words = job_words(settings)
    if words is None:
        raise ValueError(
            "a job's entrypoint goes through two shells: letters, digits, spaces and any of _@%+=:,./- are what they "
            f"leave alone, and one of these settings has others: {dict(settings)}"
        )
    body = _body(_name(command, out), " ".join([command, *words]), out, pods)
    return "\n".join([*(f"# {line}" for line in _comments(settings, pods)), _dumped(body)])


def check_kept(option: str, folder: str) -> None:
    """Raise ValueError for a folder on the disk of a pod, which ends with the job, and for one with a key in its URI."""
    if not folder:
        raise ValueError(f"{option} is needed: a job's own folder goes with its pods; take s3://bucket/name")
    if re.match(r"[\w+.-]+://[^/]*@", folder):
        raise ValueError(
            f"{option} holds a key, and this file is to be shared: leave it out, and put it into secret {SECRET}"
        )
    if "://" not in folder and not folder.startswith("/"):
        raise ValueError(
            f"{option} {folder} is relative, and a job's own folder goes with its pods: take s3://bucket/name, or an "
            "absolute path on a volume that all pods mount"
        )


def _comments(settings: Mapping[str, Any], pods: Pods) -> list[str]:
    out = str(settings["out"])
    lines = ["kubectl apply -f THIS_FILE   (KubeRay 1.5.1 or later: authOptions makes a token for this cluster)"]
    if out.startswith("s3://"):
        lines += [
            f"first: kubectl create secret generic {SECRET} --from-env-file=storage.env",
            "with lines AWS_ACCESS_KEY_ID=..., AWS_SECRET_ACCESS_KEY=..., AWS_REGION=... (AWS_ENDPOINT_URL where it is not",
            "Amazon's); where the pods have a role of their own, leave out envFrom instead",
        ]
    elif "://" not in out:
        lines.append(f"{out} is to lie on a volume: add it to the pods of both groups, as volumes and volumeMounts")
    if ":" in str(settings.get("task", "")):
        lines.append(
            f"{settings['task']} is a module of yours: have it in the image, or in a working_dir of runtimeEnvYAML"
        )
    if settings.get("data_dir"):
        lines.append(f"{settings['data_dir']} is a path in the pods: have the data in the image or on a volume")
    if pods.package:
        lines.append(
            "pip installs what the image lacks, torch too, when the cluster starts: an image of your own is faster"
        )
    return [*lines, "CPUs and memory are a guess: change them to what your model needs"]


def _body(name: str, entrypoint: str, out: str, pods: Pods) -> dict[str, Any]:
    ray = version("ray")
    image = pods.image or f"rayproject/ray:{ray}-py{sys.version_info.major}{sys.version_info.minor}" + "-gpu" * bool(
        pods.gpus
    )
    environment: dict[str, Any] = {"pip": [pods.package]} if pods.package else {}
    environment["env_vars"] = dict(ENVIRONMENT)
    secrets = {"envFrom": [{"secretRef": {"name": SECRET}}]} if out.startswith("s3://") else {}
    own = {"env": [{"name": "RAY_USAGE_STATS_ENABLED", "value": "0"}], **secrets}
    small = {"cpu": "2", "memory": "8Gi"}
    head = {
        "name": "ray-head",
        "image": image,
        **own,
        "ports": [
            {"containerPort": 6379, "name": "gcs-server"},
            {"containerPort": 8265, "name": "dashboard"},
            {"containerPort": 10001, "name": "client"},
        ],
        "resources": {"limits": small, "requests": dict(small)},
    }
    worker = {"name": "ray-worker", "image": image, **own, "resources": pods.resources}
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayJob",
        "metadata": {"name": name},
        "spec": {
            "entrypoint": entrypoint,
            "runtimeEnvYAML": _dumped(environment),
            "shutdownAfterJobFinishes": True,
            "ttlSecondsAfterFinished": SECONDS_KEPT,
            "backoffLimit": RETRIES,
            "rayClusterSpec": {
                "rayVersion": ray,
                "authOptions": {"mode": "token"},
                "headGroupSpec": {
                    "rayStartParams": {"num-cpus": "0"},  # it only holds the command: no worker is placed there
                    "template": {"spec": {"containers": [head]}},
                },
                "workerGroupSpecs": [
                    {
                        "groupName": "workers",
                        "replicas": pods.count,
                        "minReplicas": pods.count,
                        "maxReplicas": pods.count,
                        "rayStartParams": {},
                        "template": {"spec": {"containers": [worker]}},
                    }
                ],
            },
        },
    }


def _name(command: str, out: str) -> str:
    """A name that Kubernetes takes: the command and the results folder."""
    last = out.partition("?")[0].rstrip("/").rpartition("/")[2]
    name = re.sub(r"[^a-z0-9]+", "-", f"{command} {last}".lower())
    return name[:NAME_LENGTH].strip("-")


def _dumped(value: Mapping[str, Any]) -> str:
    """YAML in the order of the keys, a text of several lines as a block."""
    import yaml

    class Dumper(yaml.SafeDumper):
        def ignore_aliases(self, data: Any) -> bool:
            return True  # equal parts of both groups are written out

    def text(dumper: Any, said: str) -> Any:
        return dumper.represent_scalar("tag:yaml.org,2002:str", said, style="|" if "\n" in said else None)

    Dumper.add_representer(str, text)
    return str(yaml.dump(value, Dumper=Dumper, sort_keys=False, width=10_000))
