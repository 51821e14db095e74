"""Export of a version to MLflow's model registry: its files, figures, tags, description and aliases."""

from __future__ import annotations

import os
import re
import time
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.governance.exports import Export, figures, notes_of, summary
from pipelines.governance.model_card import model_card
from rlad.credentials import redact, require_no_secrets
from rlad.errors import ConfigError, RegistryError
from rlad.registry.registry import ModelRegistry
from rlad.registry.versions import ModelVersion

if TYPE_CHECKING:
    from mlflow import MlflowClient

_EXPERIMENT = "rlad-registry"
_REFERENCE, _KEY = "rlad.reference", "rlad.idempotency_key"
# Everything that MLflow does not accept in the name of a metric, and the names that it accepts for aliases.
_OTHER = re.compile(r"[^\w\-. :/]")
_ALIAS = re.compile(r"(?!v\d+\Z)[\w-]+", re.IGNORECASE)
# Limits of MLflow's API: metrics in one call.
_METRICS = 1000


def export_to_mlflow(registry: ModelRegistry, version: ModelVersion, *, uri: str, into: Path) -> Export:
    """Copy a version to MLflow's model registry, or update tags, description and aliases of an earlier copy.

    Args:
        registry: The registry.
        version: The version.
        uri: Address of the tracking server, or `file:` and a directory. Credentials come from `MLFLOW_TRACKING_*`.
        into: Directory for a copy of a model on an object store.

    Raises:
        ConfigError: MLflow is not installed, or the address holds credentials.
        CorruptModelError: A file of the version differs from its manifest.
        RegistryError: MLflow refuses the version or does not answer.
    """
    if find_spec("mlflow") is None:
        raise ConfigError("the package mlflow-skinny is not installed in this environment: install the extra `mlflow`")
    require_no_secrets({"mlflow": uri}, where="--mlflow")
    if uri.startswith("file:"):
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    path = registry.verified_path(version.name, version.version, into)
    try:
        client = MlflowClient(tracking_uri=uri, registry_uri=uri)
        found = _find(client, version)
        number = _upload(client, registry, version, path) if found is None else found
        left_out = _describe(client, registry, version, number)
    except (MlflowException, OSError) as error:
        raise RegistryError(f"MLflow at {uri} does not take {version.reference}: {redact(str(error))}") from error
    notes = [f"MLflow accepts no alias {alias!r}: left out" for alias in left_out]
    return Export(
        target="mlflow",
        location=f"models:/{version.name}/{number}",
        was_there=found is not None,
        notes=tuple(notes),
    )


def _find(client: MlflowClient, version: ModelVersion) -> str | None:
    """Return the number of an earlier copy in MLflow."""
    found = client.search_model_versions(f"name='{version.name}' and tags.`{_KEY}` = '{_quoted(version)}'")
    return next((str(each.version) for each in found if each.tags.get(_REFERENCE) == version.reference), None)


def _quoted(version: ModelVersion) -> str:
    if "'" in version.idempotency_key:
        raise RegistryError(f"MLflow cannot look up the key {version.idempotency_key!r} of {version.reference}")
    return version.idempotency_key


def _upload(client: MlflowClient, registry: ModelRegistry, version: ModelVersion, path: Path) -> str:
    """Copy the files into a run, and register them once they are complete. Return the number in MLflow."""
    from mlflow.entities import Metric
    from mlflow.exceptions import MlflowException

    experiment = client.get_experiment_by_name(_EXPERIMENT)
    experiment_id = client.create_experiment(_EXPERIMENT) if experiment is None else experiment.experiment_id
    run = client.create_run(experiment_id, run_name=version.reference, tags=_tags(registry, version))
    run_id = run.info.run_id
    try:
        now = round(time.time() * 1000)
        values = [Metric(_OTHER.sub("_", name), value, now, 0) for name, value in figures(version).items()]
        for start in range(0, len(values), _METRICS):
            client.log_batch(run_id, metrics=values[start : start + _METRICS])
        client.log_artifacts(run_id, str(path), "model")
        client.log_text(run_id, model_card(registry, version), "model_card.md")
    except BaseException:
        client.set_terminated(run_id, "FAILED")
        raise
    client.set_terminated(run_id)
    try:
        client.create_registered_model(version.name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    created = client.create_model_version(
        version.name,
        source=f"{run.info.artifact_uri}/model",
        run_id=run_id,
        tags=_tags(registry, version),
    )
    return str(created.version)


def _describe(client: MlflowClient, registry: ModelRegistry, version: ModelVersion, number: str) -> list[str]:
    """Set tags, description and aliases of a copy. Return aliases that MLflow does not accept."""
    present: Any = client.get_model_version(version.name, number)
    wanted = _tags(registry, version)
    for key, value in wanted.items():
        if present.tags.get(key) != value:
            client.set_model_version_tag(version.name, number, key, value)
    description = notes_of(registry, version).description or summary(version)
    if present.description != description:
        client.update_model_version(version.name, number, description)
    aliases = [alias for alias, at in registry.aliases(version.name).items() if at == version.version]
    for alias in filter(_ALIAS.fullmatch, aliases):
        client.set_registered_model_alias(version.name, alias, number)
    return [alias for alias in aliases if not _ALIAS.fullmatch(alias)]


def _tags(registry: ModelRegistry, version: ModelVersion) -> dict[str, str]:
    lineage = version.lineage
    return {
        **notes_of(registry, version).tags,
        _REFERENCE: version.reference,
        _KEY: version.idempotency_key,
        "rlad.registry": redact(registry.uri),
        "rlad.run_id": lineage.run_id,
        "rlad.started_from": lineage.parent or lineage.base_model,
        "rlad.config_sha256": lineage.config_sha256,
        "rlad.version": lineage.rlad_version,
    }
