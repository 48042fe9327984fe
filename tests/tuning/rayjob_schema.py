"""What we write of KubeRay's RayJob, as a JSON schema: names and types of the CRD ray.io/v1, and of Kubernetes' pods.

Written by hand after the CRD of KubeRay 1.7. Fields that we do not write are left out, so that a misspelt one is an error.
"""

from typing import Any


def _object(required: str, **properties: Any) -> dict[str, Any]:
    """An object with these fields and no others; `required`: their names, with spaces between."""
    return {"type": "object", "properties": properties, "required": required.split(), "additionalProperties": False}


def _map_of(values: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "additionalProperties": values}


STRING, BOOLEAN = {"type": "string"}, {"type": "boolean"}
WHOLE = {"type": "integer", "minimum": 0, "maximum": 2**31 - 1}
LABEL = {"type": "string", "pattern": "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", "maxLength": 63}
QUANTITY = {"type": "string", "pattern": r"^[0-9]+(\.[0-9]+)?(m|k|Ki|Mi|Gi|Ti)?$"}
CONTAINER = _object(
    "name image",
    name=LABEL,
    image={"type": "string", "minLength": 1},
    env={"type": "array", "items": _object("name value", name=STRING, value=STRING)},
    envFrom={"type": "array", "items": _object("secretRef", secretRef=_object("name", name=LABEL, optional=BOOLEAN))},
    ports={
        "type": "array",
        "items": _object(
            "containerPort", containerPort={"type": "integer", "minimum": 1, "maximum": 65535}, name=LABEL
        ),
    },
    resources=_object("limits requests", limits=_map_of(QUANTITY), requests=_map_of(QUANTITY)),
)
TEMPLATE = _object("spec", spec=_object("containers", containers={"type": "array", "items": CONTAINER, "minItems": 1}))
START = _map_of(STRING)
CLUSTER = _object(
    "headGroupSpec rayVersion",
    rayVersion={"type": "string", "pattern": r"^\d+\.\d+\.\d+$"},
    authOptions=_object("", mode={"enum": ["disabled", "token"]}, secretName=STRING),
    headGroupSpec=_object("template", rayStartParams=START, template=TEMPLATE),
    workerGroupSpecs={
        "type": "array",
        "items": _object(
            "groupName maxReplicas minReplicas template",
            groupName=STRING,
            replicas=WHOLE,
            minReplicas=WHOLE,
            maxReplicas=WHOLE,
            rayStartParams=START,
            template=TEMPLATE,
        ),
    },
)
RAYJOB = _object(
    "apiVersion kind metadata spec",
    apiVersion={"const": "ray.io/v1"},
    kind={"const": "RayJob"},
    metadata=_object("name", name=LABEL | {"maxLength": 47}),
    spec=_object(
        "entrypoint rayClusterSpec",
        entrypoint={"type": "string", "minLength": 1},
        runtimeEnvYAML=STRING,
        shutdownAfterJobFinishes=BOOLEAN,
        ttlSecondsAfterFinished=WHOLE,
        backoffLimit=WHOLE,
        rayClusterSpec=CLUSTER,
    ),
)
