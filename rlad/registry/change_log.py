"""Change log of one model: numbered files that are created once and never overwritten.

Each entry contains the state after its change, so the newest file alone gives the current state. A writer that loses
the race for a number reads the new state and decides again (compare-and-swap).
"""

from __future__ import annotations

import getpass
import socket
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Literal

from rlad.errors import RegistryError
from rlad.registry.changes import AliasChange, Change, LineState, LogEntry, Retirement
from rlad.registry.files import in_parallel
from rlad.registry.store import ModelStore
from rlad.registry.versions import PRODUCTION, from_json, to_json

# An attempt fails only if another writer's change succeeded.
_ATTEMPTS = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class ChangeLog:
    """Change log of the model `name`."""

    store: ModelStore
    name: str

    def state(self) -> LineState:
        """Return the current state."""
        numbers = numbers_in(self.store, self._directory)
        return self.entry(numbers[-1]).state if numbers else LineState()

    def entries(self) -> list[LogEntry]:
        """Return all entries, oldest first."""
        return in_parallel(self.entry, numbers_in(self.store, self._directory))

    def append(self, decide: Callable[[LineState], LogEntry | None]) -> None:
        """Append the entry that `decide` returns for the current state.

        Args:
            decide: Returns the entry to append, or None for no change. Called again with the newer state if another
                writer was faster.

        Raises:
            RegistryError: Other writers were faster too many times.
        """
        for _ in range(_ATTEMPTS):
            entry = decide(self.state())
            if entry is None or self.store.create(self._path(entry.state.sequence), to_json(entry)):
                return
        raise RegistryError(
            f"could not write to the change log of {self.name} in {self.store.uri}: other writers were faster "
            f"{_ATTEMPTS} times. Try again later"
        )

    def entry(self, number: int) -> LogEntry:
        """Return the entry with a number."""
        content = self.store.read(self._path(number))
        if content is None:
            raise RegistryError(
                f"{self._path(number)} in the registry at {self.store.uri} was deleted while it was read. The files "
                "of a change log must not be deleted"
            )
        return from_json(LogEntry, content, f"{self._path(number)} in {self.store.uri}")

    @property
    def _directory(self) -> str:
        return f"{self.name}/changes"

    def _path(self, number: int) -> str:
        return f"{self._directory}/{number:06d}.json"


def numbers_in(store: ModelStore, directory: str) -> list[int]:
    """Return the numbers of a directory's files `NUMBER.json`, ascending."""
    stems = [
        entry.name.removesuffix(".json")
        for entry in store.entries(directory)
        if entry.is_file and entry.name.endswith(".json")
    ]
    return sorted(int(stem) for stem in stems if stem.isdecimal())


def alias_moved(
    state: LineState,
    alias: str,
    version: int,
    *,
    kind: Literal["set", "rollback"],
    reason: str,
    requested_by: str | None = None,
    approved_by: str | None = None,
) -> LogEntry:
    """Return the entry that follows `state` and moves an alias. A move of `production` closes the open requests."""
    change = AliasChange(
        sequence=state.sequence + 1,
        kind=kind,
        alias=alias,
        previous=state.aliases.get(alias),
        version=version,
        reason=reason,
        by=author(),
        at=utc_now(),
        requested_by=requested_by,
        approved_by=approved_by,
    )
    requests = () if alias == PRODUCTION else state.requests
    return entry_after(state, change, aliases={**state.aliases, alias: version}, requests=requests)


def versions_retired(state: LineState, versions: Sequence[int]) -> LogEntry:
    """Return the entry that follows `state` and retires versions."""
    change = Retirement(sequence=state.sequence + 1, versions=tuple(versions), by=author(), at=utc_now())
    notes = {version: number for version, number in state.notes.items() if version not in versions}
    return entry_after(state, change, retired=tuple(sorted({*state.retired, *versions})), notes=notes)


def rollback_target(changes: Sequence[AliasChange], retired: Sequence[int]) -> int | None:
    """Return the version to which a rollback moves an alias, or None if there is none.

    That is the previous version that is not retired. A rollback undoes a `set`, so two rollbacks in a row go back two
    versions instead of alternating.

    Args:
        changes: Changes of one alias, oldest first.
        retired: Retired versions.
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
    """Return the current time, UTC, in ISO 8601 with milliseconds."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def entry_after(state: LineState, change: Change, **after: Any) -> LogEntry:
    """Return the entry that follows `state` and changes the given fields of it."""
    return LogEntry(
        entry_id=uuid.uuid4().hex, change=change, state=replace(state, sequence=state.sequence + 1, **after)
    )


def author() -> str:
    """Return the user and the machine of this process."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # containers may run under a user id without a name
        user = "unknown"
    return f"{user}@{socket.gethostname()}"
