"""Resolution of model references: from a reference to a location that every node resolves alike, and to its files.

The driver resolves a reference once (`pin_model`) and passes the location on. A process that needs the files fetches
them to its own node (`fetch_model`); the first one on a node downloads, the others find the files there.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from rlad.errors import PlanError
from rlad.models.files import OnBytes, require_files
from rlad.models.references import ModelReference, ReferenceKind, parse_model
from rlad.starters.cache import is_finished, parse_starter, starter_directory

REGISTRY_VARIABLE = "RLAD_REGISTRY"
_DEFAULT_REGISTRY = "registry"


@dataclass(frozen=True, slots=True, kw_only=True)
class PinnedModel:
    """A resolved model reference.

    Attributes:
        reference: The reference as configured.
        location: Location of the model, the same files on every node: an absolute directory, or a reference with its
            version.
        version: Commit of the hub, digest of a folder, or number in the registry; None for directories and starter
            models, which have none.
    """

    reference: str
    location: str
    version: str | None

    @property
    def label(self) -> str:
        """Reference with its version, for model cards and lineage."""
        return self.reference if self.version is None else parse_model(self.reference).at(self.version)


def pin_model(text: str, *, cache_dir: Path | None = None) -> PinnedModel:
    """Resolve a model reference to a location, without downloading the model.

    Args:
        text: The reference. See `rlad.models.references`.
        cache_dir: Cache of starter models; default: `$RLAD_CACHE`, else the user's cache directory.

    Raises:
        PlanError: The text is no model reference, or there is no such model.
        ModelUnreachableError: The hub or store cannot be reached, and no cache knows the version.
        RegistryError: The registry cannot be read, or has no such version.
    """
    reference = parse_model(text)
    if reference.kind is ReferenceKind.STARTER:
        return PinnedModel(reference=text, location=str(_starter(text, cache_dir)), version=None)
    directory = Path(text).expanduser()
    if reference.kind is ReferenceKind.DIRECTORY or (reference.kind is ReferenceKind.HUB and directory.is_dir()):
        if not (directory / "config.json").is_file():
            raise PlanError(
                f"no model at {text!r}: expected a Hugging Face model directory (with config.json), a hub id "
                "OWNER/NAME[@REVISION], s3://... or gs://..., registry:MODEL@ALIAS, or starter:RECIPE/ROLE"
            )
        return PinnedModel(reference=text, location=str(directory.resolve()), version=None)
    version = _version(reference)
    pinned = reference
    if reference.kind is ReferenceKind.REGISTRY:
        pinned = ModelReference(
            text=text, kind=reference.kind, name=reference.name, revision=version, registry=_registry_uri(reference)
        )
    return PinnedModel(reference=text, location=pinned.at(version), version=version)


def fetch_model(location: str, *, weights: bool = True, on_bytes: OnBytes | None = None) -> Path:
    """Return the directory of a model on this node, after downloading the files that are missing.

    Args:
        location: Location of the model, from `pin_model`.
        weights: Whether weights are needed besides configuration and tokenizer.
        on_bytes: Progress of a download.

    Raises:
        PlanError: There is no such model, it lacks safetensors weights, or its folder has changed.
        AccessError: The hub refuses access.
        ModelUnreachableError: The hub or store cannot be reached, and the cache does not hold the files.
        RegistryError: The registry cannot be read.
    """
    reference = parse_model(location)
    match reference.kind:
        case ReferenceKind.HUB:
            from rlad.models.hub import fetch_commit

            return fetch_commit(reference, weights=weights, on_bytes=on_bytes)
        case ReferenceKind.STORE:
            from rlad.models.folders import fetch_folder

            return fetch_folder(reference, weights=weights, on_bytes=on_bytes)
        case ReferenceKind.REGISTRY:
            directory = _fetch_registered(reference)
        case ReferenceKind.STARTER:
            directory = _starter(location, None)
        case ReferenceKind.DIRECTORY:
            directory = Path(location)
            if not directory.is_dir():
                raise PlanError(
                    f"the model directory {location} does not exist on this node: use a directory that all nodes "
                    "share, or a model of the hub, an object store or a registry, which each node fetches"
                )
    return require_files(directory, location, weights=True) if weights else directory


def resolve_model(text: str, cache_dir: Path | None = None, *, weights: bool = True) -> Path:
    """Return the directory of a model on this machine, from a reference: pin it, and fetch its files.

    Args:
        text: Model reference.
        cache_dir: Cache of starter models; default: `$RLAD_CACHE`, else the user's cache directory.
        weights: Whether weights are needed besides configuration and tokenizer.
    """
    return fetch_model(pin_model(text, cache_dir=cache_dir).location, weights=weights)


def _version(reference: ModelReference) -> str:
    match reference.kind:
        case ReferenceKind.HUB:
            from rlad.models.hub import commit_of

            return commit_of(reference)
        case ReferenceKind.STORE:
            from rlad.models.folders import digest_of

            return reference.revision or digest_of(reference)
        case _:
            from rlad.registry.registry import ModelRegistry

            assert reference.revision is not None
            registry = ModelRegistry.open(_registry_uri(reference))
            return str(registry.get(reference.name, reference.revision).version)


def _fetch_registered(reference: ModelReference) -> Path:
    from rlad.models.folders import models_folder
    from rlad.models.locks import locked
    from rlad.registry.registry import ModelRegistry

    registry = ModelRegistry.open(_registry_uri(reference))
    assert reference.revision is not None
    version = registry.get(reference.name, reference.revision)
    if (directory := registry.local_path(version)) is not None:
        return directory
    into = models_folder() / "registry"
    with locked(models_folder(), f".registry-{reference.name}-{version.version}"):
        # Checksums were compared when the copy was made. Reading all files again would take minutes in every worker.
        for copy in into.glob(f"{version.name}-{version.version}-*"):
            if all((copy / file.path).is_file() for file in version.files):
                return copy
        return registry.fetch(reference.name, version.version, into)


def _registry_uri(reference: ModelReference) -> str:
    """Return the URI of a reference's registry. A local one is absolute, so that every process finds it."""
    uri = reference.registry or os.environ.get(REGISTRY_VARIABLE) or _DEFAULT_REGISTRY
    return uri if "://" in uri else str(Path(uri).expanduser().resolve())


def _starter(text: str, cache_dir: Path | None) -> Path:
    starter = parse_starter(text)
    assert starter is not None
    directory = starter_directory(*starter, cache_dir)
    if not is_finished(directory):
        raise PlanError(
            f"starter model {text} does not exist yet (expected in {directory}); run `rlad pretrain {starter[0].name}`"
        )
    return directory
