"""The model registry: numbered versions of each model with their lineage, and aliases such as `production` that lead to one of them.

    registry.json                    the layout's number; made once, by the first writer
    kk-student/
      models/KEY-NONCE/...           the files of an export/, as transformers and vLLM load them
      versions/000003.json           a version's manifest, written after its last file: what has one is whole
      changes/000007.json            a move of an alias or a retirement, with the state after it

Nothing is ever overwritten. Manifests and changes are numbered, and each is created only if none of its number is there (`ModelStore.create`), so the
numbers are one order that all writers agree on, without a lock and on any store. A writer reads the newest change, decides, and writes the next number;
when somebody else has written that number first, it looks again and decides again. That is the compare-and-swap behind every alias, and why retention and
promotion cannot miss each other: both are changes in one log.
"""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Self

from rlad.errors import AliasConflictError, ModelNotFoundError, RegistryError
from rlad.evaluation.accuracy import EvaluationSummary
from rlad.registry.change_log import ChangeLog, alias_moved, numbers_in, rollback_target, utc_now, versions_retired
from rlad.registry.files import fetch_model, in_parallel, upload_model
from rlad.registry.store import ModelStore, open_store
from rlad.registry.versions import (
    LATEST,
    PRODUCTION,
    AliasChange,
    Lineage,
    LineState,
    LogEntry,
    ModelVersion,
    VersionDifference,
    difference,
    from_json,
    require_name,
    to_json,
)

_LAYOUT = 1
_LAYOUT_FILE = "registry.json"
# Files of a writer that died before its manifest. No upload takes that long.
_ABANDONED_AFTER = timedelta(days=2)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelRegistry:
    """Models in a store. Any number of processes may read and write it at once."""

    store: ModelStore

    @property
    def uri(self) -> str:
        return self.store.uri

    @classmethod
    def open(cls, uri: str) -> Self:
        """The registry at a local path, `s3://bucket/prefix` or `gs://bucket/prefix`; an empty one where nothing is yet.

        Raises:
            RegistryError: no such place, or a layout of another version of rlad.
        """
        store = open_store(uri)
        marker = store.read(_LAYOUT_FILE)
        if marker is not None and json.loads(marker).get("layout") != _LAYOUT:
            raise RegistryError(
                f"the registry at {store.uri} has another layout than {_LAYOUT}: it was made by another version of rlad"
            )
        return cls(store=store)

    def names(self) -> list[str]:
        """All models that have a version."""
        found = [entry.name for entry in self.store.entries("") if not entry.is_file]
        return [name for name in found if numbers_in(self.store, f"{name}/versions")]

    def versions(self, name: str) -> list[ModelVersion]:
        """A model's versions, the oldest first; none of a model that is not there."""
        require_name(name, "model")
        numbers = numbers_in(
            self.store, f"{name}/versions"
        )  # before the state: what is retired meanwhile is then left out
        retired = self._log(name).state().retired
        return in_parallel(
            lambda number: self._manifest(name, number), [number for number in numbers if number not in retired]
        )

    def get(self, name: str, ref: int | str) -> ModelVersion:
        """One version by its number, by an alias, or by `latest`.

        Raises:
            ModelNotFoundError: there is none; says what there is.
        """
        require_name(name, "model")
        numbers = numbers_in(self.store, f"{name}/versions")
        state = self._log(name).state()
        live = [number for number in numbers if number not in state.retired]
        if not live:
            raise ModelNotFoundError(
                f"no model {name!r} in the registry at {self.uri}; there are {', '.join(self.names()) or 'none'}"
            )
        number = self._number(ref, state, live)
        if number is None:
            aliases = ", ".join(f"{alias} ({version})" for alias, version in state.aliases.items()) or "none"
            raise ModelNotFoundError(f"no alias {ref!r} of {name} in the registry at {self.uri}; there are {aliases}")
        if number not in live:
            why = "was retired" if number in state.retired else "does not exist"
            raise ModelNotFoundError(
                f"{name}@{number} {why} in the registry at {self.uri}; there are versions {_ranges(live)}"
            )
        return self._manifest(name, number)

    def aliases(self, name: str) -> dict[str, int]:
        """Version by alias."""
        return dict(self._log(require_name(name, "model")).state().aliases)

    def history(self, name: str) -> list[AliasChange]:
        """Every move of an alias, the oldest first."""
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
            idempotency_key: whoever adds the same key again, even at the same time, gets the version that is there.
            config: the run's resolved configuration; `diff` compares it.

        Raises:
            RegistryError: the directory holds no model, or the key's version was retired.
        """
        self._require_layout(require_name(name, "model"))
        numbers = numbers_in(self.store, f"{name}/versions")
        for known in in_parallel(lambda number: self._manifest(name, number), numbers):
            if known.idempotency_key == idempotency_key:
                return self._require_live(known)
        slug = re.sub(r"[^A-Za-z0-9._-]+", "-", idempotency_key).strip(".-")[:60]
        directory = f"{name}/models/{slug}-{uuid.uuid4().hex[:8]}"
        files = upload_model(self.store, model_dir, directory)
        number = numbers[-1] if numbers else 0
        while True:  # ends: each turn passes a version that somebody else has added
            number += 1
            version = ModelVersion(
                name=name,
                version=number,
                idempotency_key=idempotency_key,
                directory=directory,
                files=files,
                lineage=lineage,
                evaluation=evaluation,
                metrics=metrics or {},
                config=config,
                created_at=utc_now(),
            )
            if self.store.create(_manifest_path(name, number), to_json(version)):
                return version
            other = self._manifest(name, number)
            if other.idempotency_key == idempotency_key:
                self.store.delete_directory(directory)
                return self._require_live(other)

    def set_alias(self, name: str, alias: str, version: int, *, expected: int | None, reason: str) -> None:
        """Let an alias lead to a version, if it still is where the caller saw it.

        Args:
            expected: the version it leads to now; None if there is no such alias.

        Raises:
            AliasConflictError: it leads elsewhere.
            ModelNotFoundError: no such version.
        """
        self.get(name, version)
        require_name(alias, "alias")

        def decide(state: LineState) -> LogEntry | None:
            present = state.aliases.get(alias)
            if present != expected:
                raise AliasConflictError(
                    f"{alias} of {name} in {self.uri} is {_told(present)}, not {_told(expected)} as was expected: somebody has moved it. "
                    f"Look at `rlad registry show {name}` and decide again"
                )
            if version in state.retired:
                raise ModelNotFoundError(
                    f"{name}@{version} was retired in the registry at {self.uri}: it cannot be {alias}"
                )
            return alias_moved(state, alias, version, kind="set", reason=reason) if present != version else None

        self._log(name).append(decide)

    def promote(self, name: str, version: int, *, expected: int | None, reason: str) -> None:
        """`set_alias` of `production`."""
        self.set_alias(name, PRODUCTION, version, expected=expected, reason=reason)

    def rollback(self, name: str, *, reason: str) -> int:
        """Put `production` back to the version before; once more, to the one before that.

        Raises:
            ModelNotFoundError: there is none, or it was retired.
        """
        log, target = self._log(require_name(name, "model")), -1

        def decide(state: LineState) -> LogEntry:
            nonlocal target
            before = self._rollback_target(log, state)
            if before is None:
                raise ModelNotFoundError(
                    f"{name} in {self.uri} has no version to roll back to: {PRODUCTION} is {_told(state.aliases.get(PRODUCTION))} "
                    f"and was no other that is still there"
                )
            target = before
            return alias_moved(state, PRODUCTION, before, kind="rollback", reason=reason)

        log.append(decide)
        return target

    def diff(self, name: str, a: int | str, b: int | str) -> VersionDifference:
        """Where two versions differ."""
        return difference(self.get(name, a), self.get(name, b))

    def fetch(self, name: str, ref: int | str, into: Path) -> Path:
        """A verified local copy of a version, inside the folder `into`. A copy that is there and intact is used again.

        Raises:
            ModelNotFoundError: no such version.
            CorruptModelError: a file is not what was registered.
        """
        return fetch_model(self.store, self.get(name, ref), into)

    def local_path(self, version: ModelVersion) -> Path | None:
        """The version's own directory, ready to load; None where the registry is not on this machine's disks."""
        return self.store.local_path(version.directory)

    def retain(self, name: str, keep: int) -> list[int]:
        """Give up all but the newest `keep` versions, and delete their files. Every alias's version stays, and the one that a rollback leads to.

        Returns:
            The versions that were given up now.
        """
        if keep < 1:
            raise RegistryError(f"retention keeps at least one version, got keep={keep}")
        log, given_up = self._log(require_name(name, "model")), list[int]()

        def decide(state: LineState) -> LogEntry | None:
            nonlocal given_up
            live = [number for number in numbers_in(self.store, f"{name}/versions") if number not in state.retired]
            kept = {*live[-keep:], *state.aliases.values(), self._rollback_target(log, state)}
            given_up = [number for number in live if number not in kept]
            return versions_retired(state, given_up) if given_up else None

        log.append(decide)
        self._sweep(name)
        return given_up

    def _sweep(self, name: str) -> None:
        """Delete files that belong to no version: of retired ones, also where an earlier sweep was cut short, and of uploads that were given up."""
        directories = {entry.name for entry in self.store.entries(f"{name}/models") if not entry.is_file}
        # Listed before the versions: an upload that gets its manifest in between is then seen as a version.
        live = {version.directory.rpartition("/")[2] for version in self.versions(name)}
        retired = self._log(name).state().retired
        gone = {self._manifest(name, number).directory.rpartition("/")[2] for number in retired}
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
        """Mark a new registry, and have the store prove on that occasion that it keeps writers apart: not every server that speaks S3 does."""
        if self.store.read(_LAYOUT_FILE) is not None:
            return
        self.store.create(_LAYOUT_FILE, json.dumps({"layout": _LAYOUT, "made_by": uuid.uuid4().hex}).encode())
        if self.store.create(_LAYOUT_FILE, json.dumps({"layout": _LAYOUT, "made_by": uuid.uuid4().hex}).encode()):
            self.store.delete_file(_LAYOUT_FILE)  # or the next writer would take the proof for given
            raise RegistryError(
                f"the store at {self.uri} overwrites a file that it was told to create only if there is none, so two writers could take one version "
                f"number: {name} is not registered. Use a store with conditional writes (If-None-Match on S3)"
            )

    def _require_live(self, version: ModelVersion) -> ModelVersion:
        if version.version in self._log(version.name).state().retired:
            raise RegistryError(
                f"{version.idempotency_key!r} was registered as {version.reference} in {self.uri}, and has been retired since: "
                f"register it under another key if it shall come back"
            )
        return version

    def _manifest(self, name: str, number: int) -> ModelVersion:
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


def _told(version: int | None) -> str:
    return "at no version" if version is None else f"at version {version}"


def _ranges(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers)) if len(numbers) <= 8 else f"{numbers[0]} to {numbers[-1]}"
