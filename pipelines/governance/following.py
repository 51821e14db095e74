"""Follower of an alias: runs a command for each version that the alias moves to, until it succeeds."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rlad.credentials import redact
from rlad.errors import ConfigError, ModelNotFoundError, RladError
from rlad.registry.registry import ModelRegistry
from rlad.registry.versions import LATEST

logger = logging.getLogger(__name__)

_MAX_PAUSE_S = 600.0
_STOP_GRACE_S = 10.0
_POLL_S = 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class _Failure:
    """Failed attempts for one version, and the time of the next one on the monotonic clock, in seconds."""

    version: int
    attempts: int
    retry_at: float


class AliasFollower:
    """Runs a command for each version that an alias moves to.

    Versions between two looks are skipped. A command that fails is repeated with growing pauses, until it succeeds or
    the alias moves on. The command's environment has `RLAD_MODEL`, `RLAD_VERSION` and `RLAD_REFERENCE`.

    Args:
        open_registry: Opens the registry, at each look.
        name: Name of the model.
        alias: Name of the alias.
        command: Program and arguments.
        applied: Version that needs no command, because it is in place already; None for none.
        every_s: Seconds between looks at the registry, and first pause after a failure.
    """

    def __init__(
        self,
        open_registry: Callable[[], ModelRegistry],
        *,
        name: str,
        alias: str,
        command: Sequence[str],
        applied: int | None,
        every_s: float,
    ) -> None:
        self._open_registry, self._name, self._alias = open_registry, name, alias
        self._command, self._every_s = list(command), every_s
        self._applied = applied
        self._failure: _Failure | None = None

    def follow(self, stop: threading.Event) -> None:
        """Follow the alias until `stop` is set. A running command is ended then.

        Raises:
            ConfigError: The reference is that of a fixed version, or of the newest.
            ModelNotFoundError: The registry has no such model.
        """
        if self._alias.isdecimal() or self._alias == LATEST:
            raise ConfigError(
                f"expected an alias to follow, for example {self._name}@production; got {self._name}@{self._alias}"
            )
        if not self._open_registry().versions(self._name):
            raise ModelNotFoundError(f"no model {self._name!r} in the registry")
        while not stop.is_set():
            self._look(stop)
            stop.wait(self._every_s)

    def _look(self, stop: threading.Event) -> None:
        try:
            version = self._open_registry().aliases(self._name).get(self._alias)
        except (RladError, OSError) as error:
            logger.warning("registry cannot be read, looking again every_s=%g: %s", self._every_s, redact(str(error)))
            return
        if version is None or version == self._applied:
            self._failure = None
            return
        failure = self._failure if self._failure is not None and self._failure.version == version else None
        if failure is not None and time.monotonic() < failure.retry_at:
            return
        reference = f"{self._name}@{version}"
        logger.info("running the command reference=%s", reference)
        status = self._run(version, stop)
        if status == 0:
            self._applied, self._failure = version, None
            logger.info("command succeeded reference=%s", reference)
        elif not stop.is_set():
            attempts = 1 if failure is None else failure.attempts + 1
            pause_s = min(_MAX_PAUSE_S, self._every_s * 2 ** min(attempts - 1, 10))
            self._failure = _Failure(version=version, attempts=attempts, retry_at=time.monotonic() + pause_s)
            logger.warning(
                "command failed reference=%s status=%d attempts=%d retry_s=%g", reference, status, attempts, pause_s
            )

    def _run(self, version: int, stop: threading.Event) -> int:
        """Run the command for a version, and return its exit status. It is ended when `stop` is set."""
        variables = {
            "RLAD_MODEL": self._name,
            "RLAD_VERSION": str(version),
            "RLAD_REFERENCE": f"{self._name}@{version}",
        }
        try:
            process = subprocess.Popen(self._command, env={**os.environ, **variables}, start_new_session=True)
        except OSError as error:
            raise ConfigError(f"cannot run {self._command[0]}: {error.strerror}") from error
        with process:
            while process.poll() is None and not stop.wait(_POLL_S):
                pass
            if process.poll() is None:
                _end(process)
        return process.returncode


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a process and its children: by SIGTERM, and by SIGKILL after the grace time."""
    os.killpg(process.pid, signal.SIGTERM)
    try:
        process.wait(timeout=_STOP_GRACE_S)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(timeout=_STOP_GRACE_S)
