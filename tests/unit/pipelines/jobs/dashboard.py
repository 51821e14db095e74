"""Fake of the Ray dashboard's job API on loopback. It records requests; tests decide when jobs end."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Dashboard:
    """Fake dashboard.

    Attributes:
        jobs: Jobs by submission id, as the API returns them.
        packages: Uploaded packages by name.
        logs: Output of jobs by submission id.
        refusal: Status and text of every answer; None to answer normally.
        outcome: Status, exit code and log with which every new job ends at once; None to keep jobs running.
        address: Address of the server.
    """

    def __init__(self) -> None:
        self.jobs: dict[str, dict[str, Any]] = {}
        self.packages: dict[str, bytes] = {}
        self.logs: dict[str, str] = {}
        self.refusal: tuple[int, str] | None = None
        self.outcome: tuple[str, int, str] | None = None
        self.address = ""

    def add(self, job_id: str, *, status: str = "RUNNING", entrypoint: str = "true", **fields: Any) -> None:
        self.jobs[job_id] = {
            "type": "SUBMISSION",
            "submission_id": job_id,
            "status": status,
            "entrypoint": entrypoint,
            "start_time": int(1000 * time.time()) + len(self.jobs),
            **fields,
        }

    def end(self, job_id: str, status: str, *, exit_code: int | None = None, log: str = "") -> None:
        self.jobs[job_id] |= {"status": status, "driver_exit_code": exit_code}
        self.logs[job_id] = log

    def answer(self, method: str, path: str, body: bytes) -> tuple[int, Any]:
        """Return the status and the JSON content of an answer."""
        if self.refusal is not None:
            return self.refusal
        match method, path.strip("/").split("/")[1:]:
            case "GET", ["version"]:
                return 200, {"ray_version": "2.60.0"}
            case "GET", ["jobs"]:
                return 200, list(self.jobs.values())
            case "POST", ["jobs"]:
                return self._submit(json.loads(body))
            case "GET", ["packages", _, name]:
                return (200, {}) if name in self.packages else (404, "no such package")
            case "PUT", ["packages", _, name]:
                self.packages[name] = body
                return 200, {}
            case _, ["jobs", job_id, *_] if job_id not in self.jobs:
                return 404, f"Job {job_id} does not exist"
            case "GET", ["jobs", job_id]:
                return 200, self.jobs[job_id]
            case "GET", ["jobs", job_id, "logs"]:
                return 200, {"logs": self.logs.get(job_id, "")}
            case "POST", ["jobs", job_id, "stop"]:
                was_alive = self.jobs[job_id]["status"] == "RUNNING"
                self.end(job_id, "STOPPED")
                return 200, {"stopped": was_alive}
        return 405, f"{method} {path}"

    def _submit(self, request: dict[str, Any]) -> tuple[int, Any]:
        job_id = request["submission_id"]
        if job_id in self.jobs:
            return 500, f"Job with submission_id {job_id} already exists."
        self.add(
            job_id, entrypoint=request["entrypoint"], metadata=request["metadata"], runtime_env=request["runtime_env"]
        )
        if self.outcome is not None:
            status, exit_code, log = self.outcome
            self.end(job_id, status, exit_code=exit_code, log=log)
        return 200, {"job_id": job_id, "submission_id": job_id}


@contextmanager
def serving() -> Iterator[Dashboard]:
    """Serve a fake dashboard for the duration of the block."""
    dashboard = Dashboard()

    class Handler(BaseHTTPRequestHandler):
        def _answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            status, content = dashboard.answer(self.command, self.path, body)
            payload = content.encode() if isinstance(content, str) else json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(payload)))
            self.end_headers()
            self.wfile.write(payload)

        do_GET = do_POST = do_PUT = _answer  # noqa: N815

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        dashboard.address = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield dashboard
        finally:
            server.shutdown()
            thread.join()
