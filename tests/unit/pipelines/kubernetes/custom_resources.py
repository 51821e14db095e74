"""KubeRay's custom resource definitions as JSON schemas, as strict as the API server is with `--validate=strict`."""

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
    """A list that is a map by some of its items' fields, as environment variables are by name, holds none twice."""
    seen = [tuple(item.get(key) for key in keys) for item in items if isinstance(item, dict)]
    for key in {key for key in seen if seen.count(key) > 1}:
        yield ValidationError(f"{key} is there twice")


_Validator = extend(Draft202012Validator, {"x-kubernetes-list-map-keys": _keys_are_unique})


def read_schemas(folder: Path) -> dict[str, Any]:
    """A validator for each kind of version `ray.io/v1`."""
    validators = {}
    for kind, name in FILES.items():
        definition = yaml.load((folder / name).read_text(), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
        (version,) = [each for each in definition["spec"]["versions"] if each["name"] == "v1"]
        schema = _strict(version["schema"]["openAPIV3Schema"])
        # The API server checks these three itself, so definitions leave them open.
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
    """OpenAPI v3 as Kubernetes means it: whole numbers or texts, nulls only where they are allowed, unknown fields refused."""
    if isinstance(node, list):
        return [_strict(each) for each in node]
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
