"""The log of one model's changes: numbered files, each created only if none of its number is there.

The newest entry holds the state, so that one small file tells how things stand. A writer that loses the race for a number reads again and decides again.
"""

from __future__ import annotations

import getpass
import socket
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Literal

from rlad.errors import RegistryError
from rlad.registry.files import in_parallel
from rlad.registry.store import ModelStore
from rlad.registry.versions import AliasChange, LineState, LogEntry, Retirement, from_json, to_json

# Each attempt that fails is one in which another writer's change came through.
_ATTEMPTS = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class ChangeLog:
    """Changes of the model `name`."""

    store: ModelStore
    name: str

    def state(self) -> LineState:
        """How things stand."""
        numbers = numbers_in(self.store, self._directory)
        return self._entry(numbers[-1]).state if numbers else LineState()

    def entries(self) -> list[LogEntry]:
        """All of it, the oldest first."""
        return in_parallel(self._entry, numbers_in(self.store, self._directory))

    def append(self, decide: Callable[[LineState], LogEntry | None]) -> None:
        """Write the change that `decide` makes of the present state, unless it makes none. It may be asked again, with a newer state.

        Raises:
            RegistryError: too many others are writing.
        """
        for _ in range(_ATTEMPTS):
            entry = decide(self.state())
            if entry is None or self.store.create(self._path(entry.state.sequence), to_json(entry)):
                return
        raise RegistryError(
            f"{self.name} in {self.store.uri} has changed {_ATTEMPTS} times while one change was to be written; try again later"
        )

    def _entry(self, number: int) -> LogEntry:
        content = self.store.read(self._path(number))
        if content is None:
            raise RegistryError(
                f"{self._path(number)} was in the registry at {self.store.uri} a moment ago and is not any more: who deletes from it?"
            )
        return from_json(LogEntry, content, f"{self._path(number)} in {self.store.uri}")

    @property
    def _directory(self) -> str:
        return f"{self.name}/changes"

    def _path(self, number: int) -> str:
        return f"{self._directory}/{number:06d}.json"


def numbers_in(store: ModelStore, directory: str) -> list[int]:
    """Numbers of a directory's numbered files, ascending."""
    stems = [
        entry.name.removesuffix(".json")
        for entry in store.entries(directory)
        if entry.is_file and entry.name.endswith(".json")
    ]
    return sorted(int(stem) for stem in stems if stem.isdecimal())


def alias_moved(
    state: LineState, alias: str, version: int, *, kind: Literal["set", "rollback"], reason: str
) -> LogEntry:
    """The entry after `state` that moves an alias."""
    change = AliasChange(
        sequence=state.sequence + 1,
        kind=kind,
        alias=alias,
        previous=state.aliases.get(alias),
        version=version,
        reason=reason,
        by=_author(),
        at=utc_now(),
    )
    return _entry_after(state, change, replace(state, aliases={**state.aliases, alias: version}))


def versions_retired(state: LineState, versions: Sequence[int]) -> LogEntry:
    """The entry after `state` that gives versions up."""
    change = Retirement(sequence=state.sequence + 1, versions=tuple(versions), by=_author(), at=utc_now())
    return _entry_after(state, change, replace(state, retired=tuple(sorted({*state.retired, *versions}))))


def rollback_target(changes: Sequence[AliasChange], retired: Sequence[int]) -> int | None:
    """The version that one alias had before its present one, of those that are not retired; None where there is none.

    A rollback takes a `set` back, so two in a row lead two versions back and not forth again.
    """
    before: list[int] = []
    for change in changes:
        if change.kind == "rollback":
            while before and before[-1] != change.version:
                before.pop()
        else:
            before.append(change.version)
    present = before[-1] if before else None
    return next((version for version in reversed(before[:-1]) if version not in retired and version != present), None)


def utc_now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def _entry_after(state: LineState, change: AliasChange | Retirement, after: LineState) -> LogEntry:
    return LogEntry(entry_id=uuid.uuid4().hex, change=change, state=replace(after, sequence=state.sequence + 1))


def _author() -> str:
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        user = "unknown"
    return f"{user}@{socket.gethostname()}"
