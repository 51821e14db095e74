"""Request to a live run, from a process of its own: `python -m pipelines.console.live_child`.

A console process stays without Ray: one process can be connected to one cluster only, and the runs of a directory may
belong to several. This process reads a request as JSON from standard input, calls the function of the command of the
same name, and writes the answer as its last line.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pipelines.cluster import live_run
from pipelines.run.directory import RunDirectory
from rlad.errors import ConfigError, RladError


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """Carry out a request.

    Args:
        request: `kind` (`status`, `stop` or `scale`), `run`, and for `scale` the `sizes` by pool.

    Returns:
        For `status` the pools of the run, or null if it is not alive; otherwise nothing.
    """
    run = RunDirectory(Path(request["run"]))
    if request["kind"] == "status":
        state = live_run.status(run)
        return {"pools": None if state is None else {name: asdict(pool) for name, pool in state.pools.items()}}
    if request["kind"] == "stop":
        live_run.stop(run)
    elif request["kind"] == "scale":
        live_run.scale(run, request["sizes"])
    else:
        raise ConfigError(f"expected status, stop or scale; got {request['kind']!r}")
    return {}


def main() -> None:
    """Answer one request."""
    try:
        result = answer(json.loads(sys.stdin.read()))
    except RladError as error:
        result = {"error": type(error).__name__, "message": str(error)}
    sys.stdout.write("\n" + json.dumps(result) + "\n")


if __name__ == "__main__":
    main()
