"""Requests that schemathesis derives from the OpenAPI page of a teacher, against a gateway that is served over HTTP.

python -m benchmarks.chaos.teacher_openapi

`make chaos` installs schemathesis into a folder of its own in the environment, so that its pytest plugin is in no other
test.

The gateway is the real one behind uvicorn; the replicas are a stand-in that checks requests as real ones do. An answer
with an undocumented status, an answer to a request without a token, or an answer of another form is a failure.
"""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
import uvicorn

from actors.teacher.http_gateway import http_application
from benchmarks.chaos import SKIPPED
from rlad.contracts import TeacherScores
from rlad.teacher.limits import require_scorable
from rlad.teacher.wire_format import ScoringRequest, TeacherIdentity

TOKEN = "a-token-of-this-benchmark"
_VOCABULARY = 1000
_TIMEOUT_S = 600.0


class _Replicas:
    """Stand-in for the replicas: checks a group and scores each token by its negated id."""

    async def identity(self) -> TeacherIdentity:
        return TeacherIdentity(
            teacher="model", tokenizer="t", engine="transformers", vocabulary=_VOCABULARY, max_groups_per_client=0
        )

    async def score(self, request: ScoringRequest) -> TeacherScores:
        group = request.group
        require_scorable(group, request.support, vocabulary=_VOCABULARY)
        await asyncio.sleep(0)
        return TeacherScores(
            uid=group.uid, attempt=group.attempt, teacher="model", logprobs=-group.response_ids.astype(np.float32)
        )


@contextmanager
def served() -> Iterator[str]:
    """Serve the gateway on a free port of this machine, and yield its URL."""
    app = http_application(_Replicas(), token=TOKEN, timeout_s=10.0, max_request_bytes=1 << 20)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(app, log_level="error"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(timeout=10)


def main(
    examples: Annotated[int, typer.Option(help="Requests per operation and phase.", min=1)] = 300,
    packages: Annotated[Path, typer.Option(help="Folder with schemathesis.")] = Path(sys.prefix) / "schemathesis",
) -> None:
    """Run schemathesis against a gateway, and exit with its status."""
    if not (packages / "schemathesis").is_dir():
        print(f"skipped: schemathesis is not installed in {packages}")
        raise typer.Exit(SKIPPED)
    with served() as url, tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-c", "from schemathesis.cli import schemathesis; schemathesis()", "run"]
        command += [f"{url}/openapi.json", "--max-examples", str(examples)]
        command += ["--header", f"Authorization: Bearer {TOKEN}", "--seed", "7"]
        # The schema calls every body valid: it cannot describe safetensors.
        command += ["--exclude-checks", "positive_data_acceptance"]
        # On a loaded machine the clock says nothing about the generation of requests.
        command += ["--suppress-health-check", "too_slow"]
        path = os.pathsep.join([*sys.path, str(packages)])
        hooks = {"SCHEMATHESIS_HOOKS": "benchmarks.chaos.teacher_bodies", "PYTHONPATH": path}
        ended = subprocess.run(command, check=False, cwd=folder, env={**os.environ, **hooks}, timeout=_TIMEOUT_S)
        raise typer.Exit(ended.returncode)


if __name__ == "__main__":
    typer.run(main)
