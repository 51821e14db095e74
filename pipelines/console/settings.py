"""Settings of a console."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from pipelines.console.live import LiveRuns, LiveRunsByChild
from pipelines.console.users import TOKEN_VARIABLE, Users
from rlad.errors import ConfigError

LOOPBACK = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True, slots=True, kw_only=True)
class ConsoleSettings:
    """Settings of a console.

    Attributes:
        runs: Directory with run directories.
        registry: URI of the model registry.
        schedules: URL of the schedule store.
        audit: File of the audit log.
        users: Users that may sign in. Without any, every visitor may read, and no action is possible.
        is_loopback: Whether the console listens on loopback only. It then refuses requests for other host names, so
            that no page of another site reaches it under a name of its own (DNS rebinding).
        is_encrypted: Whether browsers reach it by HTTPS. The session cookie is then marked `Secure`.
        live: Access to live runs.
    """

    runs: Path
    registry: str
    schedules: str
    audit: Path
    users: Users
    is_loopback: bool = True
    is_encrypted: bool = False
    live: LiveRuns = field(default_factory=LiveRunsByChild)


def require_usable(runs: Path, *, host: str, users: Users, certificate: Path | None, key: Path | None) -> None:
    """Refuse settings with which a console would be unsafe or empty.

    Raises:
        ConfigError: The directory is a run or does not exist, one of certificate and key is missing, or other machines
            could reach a console without users.
    """
    if not runs.expanduser().is_dir():
        raise ConfigError(f"no directory {runs}: give the directory that holds the run directories")
    if (runs.expanduser() / "config.yaml").is_file():
        raise ConfigError(
            f"{runs} is a run: give the directory that holds the run directories, here {runs.resolve().parent}"
        )
    if (certificate is None) != (key is None):
        raise ConfigError("--certificate and --key belong together: give both or neither")
    if host not in LOOPBACK and not users:
        raise ConfigError(
            f"other machines may reach {host}, so the console requires users: give --users, or set {TOKEN_VARIABLE}"
        )
