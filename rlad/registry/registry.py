"""Model registry: numbered versions of each model with their lineage, and aliases such as `production`.

    registry.json                    version of the layout; created once, by the first writer
    kk-student/
      models/KEY-NONCE/...           files of an export/, as transformers and vLLM load them
      versions/000003.json           manifest of a version, written after its last file
      changes/000007.json            change (alias, notes, request, retirement, ...) with the state after it

Files are never overwritten. Manifests and changes are numbered and created conditionally (`ModelStore.create`), so all
writers agree on one order without locks, on any store. A writer reads the newest change, decides, and writes the next
number. If another writer has taken that number, it reads and decides again. Aliases therefore move by compare-and-swap,
and retention and promotion cannot miss each other, because both are changes in the same log.
"""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Self

from rlad.errors import AliasConflictError, ApprovalRequiredError, ModelNotFoundError, RegistryError
from rlad.evaluation.accuracy import EvaluationSummary
from rlad.registry.change_log import ChangeLog, alias_moved, numbers_in, rollback_target, utc_now, versions_retired
from rlad.registry.changes import AliasChange, LineState, LogEntry
from rlad.registry.files import fetch_model, in_parallel, require_intact, upload_model
from rlad.registry.store import ModelStore, open_store
from rlad.registry.versions import (
    LATEST,
    PRODUCTION,
    Lineage,
    ModelVersion,
    VersionDifference,
    difference,
    from_json,
    require_name,
    to_json,
)

_LAYOUT = 1
_LAYOUT_FILE = "registry.json"
# Age at which files without a manifest count as left behind by a crashed writer. No upload takes that long.
_ABANDONED_AFTER = timedelta(days=2)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelRegistry:
    """Registry of models in a store. Supports concurrent readers and writers in any number of processes."""

    store: ModelStore

    @property
    def uri(self) -> str:
        """URI of the store."""
        return self.store.uri

    @classmethod
    def open(cls, uri: str) -> Self:
        """Open the registry at a local path, `s3://bucket/prefix` or `gs://bucket/prefix`.

        A location without a registry is an empty registry.

        Raises:
            RegistryError: The store cannot be reached, or the registry's layout is that of another version of rlad.
        """
        store = open_store(uri)
        marker = store.read(_LAYOUT_FILE)
        try:
            layout = _LAYOUT if marker is None else dict(json.loads(marker)).get("layout")
        except (ValueError, TypeError) as error:
            raise RegistryError(
                f"registry at {store.uri}: {_LAYOUT_FILE} is damaged: {error}. It holds only the layout's number: "
                f'replace its content by {{"layout": {_LAYOUT}}}'
            ) from error
        if layout != _LAYOUT:
            raise RegistryError(
                f"registry at {store.uri}: expected layout {_LAYOUT}; got {layout}. Use the version of rlad that "
                "created it"
            )
        return cls(store=store)

    def names(self) -> list[str]:
        """Return the names of all models that have a version."""
        found = [entry.name for entry in self.store.entries("") if not entry.is_file]
        return [name for name in found if numbers_in(self.store, f"{name}/versions")]

    def versions(self, name: str) -> list[ModelVersion]:
        """Return the versions of a model, oldest first. The list is empty for an unknown model."""
        require_name(name, "model")
        # Listed before the state is read, so that versions retired in between are left out.
        numbers = numbers_in(self.store, f"{name}/versions")
        retired = self._log(name).state().retired
        return in_parallel(
            lambda number: self.manifest(name, number), [number for number in numbers if number not in retired]
        )

    def get(self, name: str, ref: int | str) -> ModelVersion:
        """Return the version with a number or alias, or the newest one for `latest`.

        Raises:
            ModelNotFoundError: There is no such version.
        """
        require_name(name, "model")
        numbers = numbers_in(self.store, f"{name}/versions")
        state = self._log(name).state()
        live = [number for number in numbers if number not in state.retired]
        if not live:
            raise ModelNotFoundError(
                f"no model {name!r} in the registry at {self.uri}; models: {', '.join(self.names()) or 'none'}"
            )
        number = self._number(ref, state, live)
        if number is None:
            aliases = ", ".join(f"{alias} ({version})" for alias, version in state.aliases.items()) or "none"
            raise ModelNotFoundError(f"no alias {ref!r} of {name} in the registry at {self.uri}; aliases: {aliases}")
        if number not in live:
            why = "was retired" if number in state.retired else "does not exist"
            raise ModelNotFoundError(f"{name}@{number} {why} in the registry at {self.uri}; versions: {_ranges(live)}")
        return self.manifest(name, number)

    def aliases(self, name: str) -> dict[str, int]:
        """Return the version of each alias of a model."""
        return dict(self._log(require_name(name, "model")).state().aliases)

    def history(self, name: str) -> list[AliasChange]:
        """Return all moves of the aliases of a model, oldest first."""
        return _alias_changes(self._log(require_name(name, "model")).entries())

    def add(
        self,
        name: str,
        model_dir: Path,
        *,
        lineage: Lineage,
        evaluation: EvaluationSummary,
        idempotency_key: str,
        metrics: Mapping[str, float] | None = None,
        config: Mapping[str, Any] | None = None,
    ) -> ModelVersion:
        """Register the files of a directory as the next version of a model.

        Args:
            name: Name of the model.
            model_dir: Directory with the files.
            lineage: Lineage of the version.
            evaluation: Evaluation of the model.
            idempotency_key: Adding the same key again, even concurrently, returns the existing version.
            metrics: Further metrics to record.
            config: Resolved configuration of the run, which `diff` compares.

        Raises:
            RegistryError: The directory contains no model, or the version of this key was retired.
        """
        self._require_layout(require_name(name, "model"))
        numbers = numbers_in(self.store, f"{name}/versions")
        for known in in_parallel(lambda number: self.manifest(name, number), numbers):
            if known.idempotency_key == idempotency_key:
                return self._require_live(known)
        slug = re.sub(r"[^A-Za-z0-9._-]+", "-", idempotency_key).strip(".-")[:60]
        directory = f"{name}/models/{slug}-{uuid.uuid4().hex[:8]}"
        files = upload_model(self.store, model_dir, directory)
        return self._create_manifest(
            ModelVersion(
                name=name,
                version=numbers[-1] + 1 if numbers else 1,
                idempotency_key=idempotency_key,
                directory=directory,
                files=files,
                lineage=lineage,
                evaluation=evaluation,
                metrics=metrics or {},
                config=config,
                created_at=utc_now(),
            )
        )

    def set_alias(self, name: str, alias: str, version: int, *, expected: int | None, reason: str) -> None:
        """Move an alias to a version, unless it has been moved in the meantime.

        Args:
            name: Name of the model.
            alias: Name of the alias.
            version: Version to move it to.
            expected: Version that the alias has now; None if the alias does not exist.
            reason: Reason to record, as free text.

        Raises:
            AliasConflictError: The alias is not at the expected version.
            ApprovalRequiredError: The alias is `production`, and the model requires approval.
            ModelNotFoundError: There is no such version.
        """
        self.get(name, version)
        require_name(alias, "alias")

        def decide(state: LineState) -> LogEntry | None:
            present = state.aliases.get(alias)
            if present != expected:
                raise AliasConflictError(
                    f"expected {alias} of {name} in {self.uri} {_at_version(expected)}; it is {_at_version(present)}. "
                    f"Another process may have moved it: see `rlad registry show {name}`, and try again"
                )
            if version in state.retired:
                raise ModelNotFoundError(
                    f"{name}@{version} was retired in the registry at {self.uri}, so it cannot become {alias}"
                )
            if present == version:
                return None
            if alias == PRODUCTION and state.is_approval_required:
                raise ApprovalRequiredError(
                    f"{name} in {self.uri} requires approval: use `rlad registry request {name}@{version}`"
                )
            return alias_moved(state, alias, version, kind="set", reason=reason)

        self._log(name).append(decide)

    def promote(self, name: str, version: int, *, expected: int | None, reason: str) -> None:
        """Move the alias `production` to a version. See `set_alias`."""
        self.set_alias(name, PRODUCTION, version, expected=expected, reason=reason)

    def rollback(self, name: str, *, reason: str) -> int:
        """Move `production` back to the previous version. Repeated rollbacks go back one version each.

        Returns:
            The version that is in production now.

        Raises:
            ModelNotFoundError: There is no previous version, or it was retired.
        """
        log, target = self._log(require_name(name, "model")), -1

        def decide(state: LineState) -> LogEntry:
            nonlocal target
            before = self._rollback_target(log, state)
            if before is None:
                raise ModelNotFoundError(
                    f"{name} in {self.uri} has no version to roll back to: {PRODUCTION} is "
                    f"{_at_version(state.aliases.get(PRODUCTION))}, and all previous versions were retired or never "
                    "existed"
                )
            target = before
            return alias_moved(state, PRODUCTION, before, kind="rollback", reason=reason)

        log.append(decide)
        return target

    def diff(self, name: str, a: int | str, b: int | str) -> VersionDifference:
        """Return the differences between two versions of a model."""
        return difference(self.get(name, a), self.get(name, b))

    def fetch(self, name: str, ref: int | str, into: Path) -> Path:
        """Return a local directory with verified files of a version, downloading it into `into` if necessary.

        Raises:
            ModelNotFoundError: There is no such version.
            CorruptModelError: A file in the store differs from its manifest.
        """
        return fetch_model(self.store, self.get(name, ref), into)

    def verified_path(self, name: str, ref: int | str, into: Path) -> Path:
        """Return a local directory with verified files of a version.

        It is the version's own directory in a local registry, and a copy inside `into` of one on an object store.

        Raises:
            ModelNotFoundError: There is no such version.
            CorruptModelError: A file in the registry differs from its manifest.
        """
        version = self.get(name, ref)
        local = self.local_path(version)
        if local is None:
            return fetch_model(self.store, version, into)
        require_intact(local, version, self.uri)
        return local

    def local_path(self, version: ModelVersion) -> Path | None:
        """Return the version's directory in a local registry, not verified; None for registries on object stores."""
        return self.store.local_path(version.directory)

    def retain(self, name: str, keep: int) -> list[int]:
        """Retire all but the newest `keep` versions, and delete their files.

        Versions with an alias or an open promotion request and the target of a rollback are kept, too.

        Returns:
            The versions retired by this call.
        """
        if keep < 1:
            raise RegistryError(f"retention must keep at least one version; got keep={keep}")
        log, retired = self._log(require_name(name, "model")), list[int]()

        def decide(state: LineState) -> LogEntry | None:
            nonlocal retired
            live = [number for number in numbers_in(self.store, f"{name}/versions") if number not in state.retired]
            requested = {request.version for request in state.requests}
            kept = {*live[-keep:], *state.aliases.values(), *requested, self._rollback_target(log, state)}
            retired = [number for number in live if number not in kept]
            return versions_retired(state, retired) if retired else None

        log.append(decide)
        self._sweep(name)
        return retired

    def _sweep(self, name: str) -> None:
        """Delete files that belong to no version.

        These are the files of retired versions, also after an interrupted sweep, and of abandoned uploads.
        """
        for directory in ("", f"{name}/versions", f"{name}/changes"):
            self.store.delete_temporary(directory, before=datetime.now(UTC) - _ABANDONED_AFTER)
        directories = {entry.name for entry in self.store.entries(f"{name}/models") if not entry.is_file}
        # Listed before the versions, so that an upload whose manifest is written in between counts as a version.
        live = {version.directory.rpartition("/")[2] for version in self.versions(name)}
        retired = self._log(name).state().retired
        gone = {self.manifest(name, number).directory.rpartition("/")[2] for number in retired}
        for directory in sorted(directories - live):
            path = f"{name}/models/{directory}"
            if directory in gone or self._is_abandoned(path):
                self.store.delete_directory(path)

    def _is_abandoned(self, directory: str) -> bool:
        written = [entry.modified_at for entry in self.store.entries(directory) if entry.modified_at is not None]
        return bool(written) and max(written) < datetime.now(UTC) - _ABANDONED_AFTER

    def _rollback_target(self, log: ChangeLog, state: LineState) -> int | None:
        entries = [entry for entry in log.entries() if entry.state.sequence <= state.sequence]
        return rollback_target(
            [change for change in _alias_changes(entries) if change.alias == PRODUCTION], state.retired
        )

    def _require_layout(self, name: str) -> None:
        """Create the layout file of a new registry, and check that the store supports conditional writes.

        Some S3-compatible servers ignore the condition and overwrite.
        """
        if self.store.read(_LAYOUT_FILE) is not None:
            return
        self.store.create(_LAYOUT_FILE, json.dumps({"layout": _LAYOUT, "made_by": uuid.uuid4().hex}).encode())
        if self.store.create(_LAYOUT_FILE, json.dumps({"layout": _LAYOUT, "made_by": uuid.uuid4().hex}).encode()):
            self.store.delete_file(_LAYOUT_FILE)  # otherwise the next writer would skip the check
            raise RegistryError(
                f"the store at {self.uri} does not support conditional writes, so two writers could take the same "
                f"version number. {name} was not registered. Use a store with conditional writes (If-None-Match on S3)"
            )

    def _require_live(self, version: ModelVersion) -> ModelVersion:
        if version.version in self._log(version.name).state().retired:
            raise RegistryError(
                f"{version.idempotency_key!r} was registered as {version.reference} in {self.uri} and has been "
                "retired. Use another key to register it again"
            )
        return version

    def _create_manifest(self, version: ModelVersion) -> ModelVersion:
        """Write the manifest of an uploaded version under the first free number, starting with its own.

        Returns the other writer's version, and deletes the upload, if that writer added the same key.
        """
        while True:  # terminates: each iteration skips a version added by another writer
            if self.store.create(_manifest_path(version.name, version.version), to_json(version)):
                return version
            other = self.manifest(version.name, version.version)
            if other.idempotency_key == version.idempotency_key:
                self.store.delete_directory(version.directory)
                return self._require_live(other)
            version = replace(version, version=version.version + 1, created_at=utc_now())

    def manifest(self, name: str, number: int) -> ModelVersion:
        """Return a version by its number, also a retired one."""
        path = _manifest_path(name, number)
        content = self.store.read(path)
        if content is None:
            raise ModelNotFoundError(f"no {path} in the registry at {self.uri}")
        return from_json(ModelVersion, content, f"{path} in {self.uri}")

    def _number(self, ref: int | str, state: LineState, live: list[int]) -> int | None:
        if isinstance(ref, int) or ref.isdecimal():
            return int(ref)
        return live[-1] if ref == LATEST else state.aliases.get(ref)

    def _log(self, name: str) -> ChangeLog:
        return ChangeLog(store=self.store, name=name)


def _manifest_path(name: str, number: int) -> str:
    return f"{name}/versions/{number:06d}.json"


def _alias_changes(entries: list[LogEntry]) -> list[AliasChange]:
    return [entry.change for entry in entries if isinstance(entry.change, AliasChange)]


def _at_version(version: int | None) -> str:
    return "at no version" if version is None else f"at version {version}"


def _ranges(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers)) if len(numbers) <= 8 else f"{numbers[0]} to {numbers[-1]}"
