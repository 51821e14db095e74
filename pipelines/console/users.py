"""Users of the console: names, roles, and tokens that a file refers to."""

from __future__ import annotations

import enum
import hashlib
import hmac
import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import yaml
from pydantic import Field, model_validator

from rlad.config.base import ConfigModel
from rlad.config.load import validated
from rlad.errors import AccessError, ConfigError

TOKEN_VARIABLE = "RLAD_CONSOLE_TOKEN"
"""Environment variable with the token of the only user, if no users file is given."""

_SHORTEST_TOKEN = 16


class Role(enum.IntEnum):
    """Role of a user. Each includes the ones before it.

    VIEW: reads all pages. OPERATE: stops and scales runs, promotes approved versions and rolls back. APPROVE: approves
    versions.
    """

    VIEW = 1
    OPERATE = 2
    APPROVE = 3

    @property
    def label(self) -> str:
        """Name in files and pages."""
        return self.name.lower()


@dataclass(frozen=True, slots=True, kw_only=True)
class User:
    """A user of the console."""

    name: str
    role: Role


LOCAL_VIEWER = User(name="local", role=Role.VIEW)
"""User of a console without tokens, which listens on loopback only."""


class UserConfig(ConfigModel):
    """Entry of the users file."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._@-]{0,62}$")]
    role: Annotated[str, Field(pattern=r"^(view|operate|approve)$")]
    token_file: str | None = None
    token_env: str | None = None

    @model_validator(mode="after")
    def _require_one_reference(self) -> UserConfig:
        if (self.token_file is None) == (self.token_env is None):
            raise ValueError("expected exactly one of token_file and token_env")
        return self


class UsersFile(ConfigModel):
    """Content of a users file."""

    users: Annotated[list[UserConfig], Field(min_length=1)]


class Users:
    """Users by token. Only digests of the tokens are kept in memory."""

    def __init__(self, users: Sequence[tuple[User, str]]) -> None:
        """
        Args:
            users: Each user with the token.

        Raises:
            ConfigError: Two users share a name or a token.
        """
        names = [user.name for user, _ in users]
        self._digests = [(user, _digest(token)) for user, token in users]
        if len(set(names)) < len(names):
            raise ConfigError(f"users of the console require different names; got {', '.join(sorted(names))}")
        if len({digest for _, digest in self._digests}) < len(users):
            raise ConfigError("users of the console require different tokens; two of them are equal")

    def __bool__(self) -> bool:
        return bool(self._digests)

    def by_token(self, token: str) -> User | None:
        """Return the user with a token; None if there is none. All tokens are compared, each in constant time."""
        given, found = _digest(token), None
        for user, digest in self._digests:
            if hmac.compare_digest(given, digest):
                found = user
        return found


def read_users(file: Path | None) -> Users:
    """Read the users from a file, or the only user from the environment variable `RLAD_CONSOLE_TOKEN`.

    Args:
        file: YAML file; None uses the environment, and there are no users if the variable is not set.

    Raises:
        ConfigError: The file cannot be read or is invalid.
        AccessError: A token is missing, readable by others or too easy to guess.
    """
    if file is None:
        token = os.environ.get(TOKEN_VARIABLE, "").strip()
        if not token:
            return Users([])
        return Users([(User(name="admin", role=Role.APPROVE), _checked(token, f"the variable {TOKEN_VARIABLE}"))])
    try:
        content = yaml.safe_load(file.read_bytes())
    except (OSError, yaml.YAMLError) as error:
        raise ConfigError(f"cannot read the users of the console from {file}: {error}") from error
    entries = validated(UsersFile, content, where=str(file)).users
    return Users([(User(name=entry.name, role=Role[entry.role.upper()]), _token_of(entry)) for entry in entries])


def _token_of(entry: UserConfig) -> str:
    if entry.token_env is not None:
        return _checked(os.environ.get(entry.token_env, "").strip(), f"the variable {entry.token_env}")
    path = Path(entry.token_file or "").expanduser()
    try:
        mode, token = path.stat().st_mode, path.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise AccessError(f"cannot read the token of {entry.name} from {path}: {type(error).__name__}") from error
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise AccessError(f"other users of this machine may access {path}: run `chmod 600 {path}`")
    return _checked(token, str(path))


def _checked(token: str, source: str) -> str:
    if len(token) < _SHORTEST_TOKEN or not token.isascii() or not token.isprintable() or " " in token:
        raise AccessError(
            f"{source} does not hold a valid token: expected at least {_SHORTEST_TOKEN} printable ASCII characters "
            "without spaces; create one with `openssl rand -hex 32`"
        )
    return token


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()
