"""Audit log of the console: one JSON line for each sign-in and action, appended and never changed."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pipelines.console.problems import message_of
from rlad.errors import RladError, StorageError
from rlad.integrity.durable import append_durably

# Bytes from the end of the log that a page reads.
_TAIL_BYTES = 256 << 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Actor:
    """Author of an entry.

    Attributes:
        name: Name of the user; `-` for a failed sign-in.
        role: Role of the user.
        client: Address that the request came from.
    """

    name: str
    role: str
    client: str


class AuditLog:
    """The log of one console. Threads may share it."""

    def __init__(self, path: Path) -> None:
        """Create the file, readable by its owner only, if it does not exist.

        Raises:
            StorageError: The file cannot be written.
        """
        self._path, self._lock = path, threading.Lock()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            os.close(os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600))
        except OSError as error:
            raise StorageError(f"cannot write the audit log {path}: {error.strerror}") from error

    def write(self, actor: Actor, action: str, target: str, outcome: str, details: Mapping[str, Any]) -> None:
        """Append an entry.

        Raises:
            StorageError: The disk refused it.
        """
        entry = {
            "at": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "user": actor.name,
            "role": actor.role,
            "client": actor.client,
            "action": action,
            "target": target,
            "outcome": outcome,
            **details,
        }
        with self._lock:
            append_durably(self._path, json.dumps(entry) + "\n")

    @contextmanager
    def recording(self, actor: Actor, action: str, target: str, details: Mapping[str, Any]) -> Iterator[None]:
        """Record an action before it begins, and its end. An action that cannot be recorded does not begin."""
        self.write(actor, action, target, "requested", details)
        try:
            yield
        except RladError as error:
            reason = {"error": type(error).__name__, "message": message_of(error)}
            self.write(actor, action, target, "refused", {**details, **reason})
            raise
        except BaseException as error:
            self.write(actor, action, target, "failed", {**details, "error": type(error).__name__})
            raise
        self.write(actor, action, target, "done", details)

    def newest(self, limit: int) -> list[dict[str, Any]]:
        """Return the last entries, newest first. Lines that are not entries are left out."""
        with self._path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - _TAIL_BYTES))
            lines = file.read().splitlines()
        entries = [entry for line in lines[-limit - 1 :] if (entry := _entry(line)) is not None]
        return entries[::-1][:limit]


def _entry(line: bytes) -> dict[str, Any] | None:
    try:
        entry = json.loads(line)
    except ValueError:
        return None
    return entry if isinstance(entry, dict) else None
