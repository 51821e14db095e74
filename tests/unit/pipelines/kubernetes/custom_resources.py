"""KubeRay's custom resource definitions as JSON schemas, as strict as `kubectl --validate=strict`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from jsonschema import Draft202012Validator, ValidationError
from jsonschema.validators import extend

FILES = {
    "RayCluster": "ray.io_rayclusters.yaml",
    "RayJob": "ray.io_rayjobs.yaml",
    "RayService": "ray.io_rayservices.yaml",
    "RayCronJob": "ray.io_raycronjobs.yaml",
}
Schema = dict[str, Any]


def _keys_are_unique(_: Any, keys: list[str], items: Any, __: Schema) -> Iterator[ValidationError]:
    """Refuse duplicates in a list with map keys, for example environment variables with the same name."""
    seen = [tuple(item.get(key) for key in keys) for item in items if isinstance(item, dict)]
    for key in {key for key in seen if seen.count(key) > 1}:
        yield ValidationError(f"{key} is duplicated")


_Validator = extend(Draft202012Validator, {"x-kubernetes-list-map-keys": _keys_are_unique})


def read_schemas(folder: Path) -> dict[str, Any]:
    """Return a validator for each kind of version `ray.io/v1`."""
    validators = {}
    for kind, name in FILES.items():
        definition = yaml.load((folder / name).read_text(), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
        (version,) = [entry for entry in definition["spec"]["versions"] if entry["name"] == "v1"]
        schema = _strict(version["schema"]["openAPIV3Schema"])
        # The API server checks these three itself, so the definitions do not constrain them.
        schema["properties"] |= {
            "apiVersion": {"const": "ray.io/v1"},
            "kind": {"const": kind},
            "metadata": {"type": "object"},
        }
        schema["required"] = ["apiVersion", "kind", "metadata", "spec"]
        validators[kind] = _Validator(schema)
    return validators


def problems(validator: Any, manifest: Any) -> list[str]:
    return [f"{error.json_path}: {error.message[:200]}" for error in validator.iter_errors(manifest)]


def _strict(node: Any) -> Any:
    """Convert Kubernetes' OpenAPI v3 to JSON schema: int-or-string, nullable, and unknown fields refused."""
    if isinstance(node, list):
        return [_strict(item) for item in node]
    if not isinstance(node, dict):
        return node
    schema = {
        key: value if key in ("enum", "default", "required") else _strict(value)
        for key, value in node.items()
        if key != "properties"
    }
    if "properties" in node:
        schema["properties"] = {name: _strict(value) for name, value in node["properties"].items()}
    if node.get("x-kubernetes-int-or-string"):
        schema.pop("type", None)
        schema["anyOf"] = [{"type": "integer"}, {"type": "string"}]
    if (
        node.get("type") == "object"
        and "additionalProperties" not in node
        and not node.get("x-kubernetes-preserve-unknown-fields")
    ):
        schema["additionalProperties"] = False
    if node.get("nullable"):
        return {"anyOf": [schema, {"type": "null"}]}
    return schema
