"""Live runs: their pools, and requests to stop and scale them."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from typing import Any, Protocol

from pipelines.run.directory import RunDirectory
from rlad import errors
from rlad.errors import DeadlineError, RladError, RunDirectoryError

logger = logging.getLogger(__name__)

_TIMEOUT_S = 90.0
# Age until which the answer about a run's pools is used again.
_FRESH_S = 10.0
_MAX_ANSWERS = 256

Pools = Mapping[str, Mapping[str, int]]
"""Number of workers by pool: `target`, `ready`, `starting` and `draining`."""


class LiveRuns(Protocol):
    """Access to live runs."""

    def pools(self, run: RunDirectory) -> Pools | None:
        """Return the pools of a run; None if it is not alive."""
        ...

    def stop(self, run: RunDirectory) -> None:
        """Request a run to end after its current step."""
        ...

    def scale(self, run: RunDirectory, sizes: Mapping[str, int]) -> None:
        """Request other pool sizes."""
        ...


class LiveRunsByChild:
    """`LiveRuns` that ask the controller of a run from a child process, as `rlad status`, `stop` and `scale` do."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._answers: dict[str, tuple[float, Pools | None]] = {}

    def pools(self, run: RunDirectory) -> Pools | None:
        """Return the pools of a run, up to some seconds old; None if it is not alive.

        Raises:
            DeadlineError: The cluster of the run did not answer.
        """
        with self._lock:  # one child at a time, however many pages are open
            asked_at, pools = self._answers.get(str(run.path), (-_FRESH_S, None))
            if time.monotonic() - asked_at >= _FRESH_S:
                pools = _ask({"kind": "status", "run": str(run.path)})["pools"]
                if len(self._answers) >= _MAX_ANSWERS:
                    self._answers.clear()
                self._answers[str(run.path)] = (time.monotonic(), pools)
            return pools

    def stop(self, run: RunDirectory) -> None:
        """Request a run to end after its current step.

        Raises:
            RunDirectoryError: The run is not alive or not reachable.
            DeadlineError: The cluster of the run did not answer.
        """
        _ask({"kind": "stop", "run": str(run.path)})

    def scale(self, run: RunDirectory, sizes: Mapping[str, int]) -> None:
        """Request other pool sizes.

        Raises:
            RunDirectoryError: The run is not alive or not reachable, or cannot scale a pool to the size.
            DeadlineError: The cluster of the run did not answer.
        """
        _ask({"kind": "scale", "run": str(run.path), "sizes": dict(sizes)})
        with self._lock:
            self._answers.pop(str(run.path), None)


def _ask(request: Mapping[str, Any]) -> dict[str, Any]:
    try:
        ended = subprocess.run(
            [sys.executable, "-m", "pipelines.console.live_child"],
            input=json.dumps(request),
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise DeadlineError(f"the cluster of {request['run']} did not answer within {_TIMEOUT_S:g} s") from error
    try:
        result: dict[str, Any] = json.loads(ended.stdout.rstrip().rpartition("\n")[2])
    except ValueError as error:
        logger.error("request=%s status=%d output=%s", request["kind"], ended.returncode, ended.stderr[-2000:])
        raise RunDirectoryError(
            f"the request to {request['run']} failed with status {ended.returncode}: see the log of the console"
        ) from error
    if "error" in result:
        raise _error(result)
    return result


def _error(result: Mapping[str, str]) -> RladError:
    """Return the error of a child by its class."""
    kind = getattr(errors, result["error"], RunDirectoryError)
    is_known = isinstance(kind, type) and issubclass(kind, RladError)
    return kind(result["message"]) if is_known else RunDirectoryError(result["message"])
