"""Metrics of a teacher's HTTP gateway, at `/metrics`."""

from __future__ import annotations

import time
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rlad.monitoring.table import metric

# Other paths share one label, so that clients cannot make labels.
_ROUTES = {"/v1/score", "/v1/teacher", "/healthz", "/metrics"}
_SCORE_STATUSES = ("200", "429", "500", "503", "504")
# Scoring takes milliseconds for short groups of a small teacher, and minutes in a queue.
_BUCKETS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300)


class GatewayMetrics:
    """Counts the requests of one gateway process."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._requests = self._new(Counter, "rlad_teacher_requests_total")
        self._seconds = self._new(Histogram, "rlad_teacher_request_seconds", buckets=_BUCKETS)
        self._in_progress = self._new(Gauge, "rlad_teacher_requests_in_progress")
        self._tokens = self._new(Counter, "rlad_teacher_scored_tokens_total")
        # A counter that begins above 0 has no rate, so the first refusals and failures would not be seen.
        for status in _SCORE_STATUSES:
            self._requests.labels(route="/v1/score", status=status)

    def count_tokens(self, number: int) -> None:
        """Count the tokens of a scored group."""
        self._tokens.inc(number)

    def text(self) -> tuple[bytes, str]:
        """Return all metrics in Prometheus' text format, and its media type."""
        return generate_latest(self._registry), CONTENT_TYPE_LATEST

    def counting(self, app: ASGIApp) -> ASGIApp:
        """Return the application with a count of its requests around it."""

        async def counted(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] != "http":
                await app(scope, receive, send)
                return
            path = scope["path"].removeprefix(scope.get("root_path", ""))
            route = path if path in _ROUTES else "other"
            status, started = 500, time.perf_counter()

            async def noted(message: Message) -> None:
                nonlocal status
                if message["type"] == "http.response.start":
                    status = message["status"]
                await send(message)

            self._in_progress.inc()
            try:
                await app(scope, receive, noted)
            finally:
                self._in_progress.dec()
                self._requests.labels(route=route, status=str(status)).inc()
                self._seconds.labels(route=route).observe(time.perf_counter() - started)

        return counted

    def _new(self, kind: type[Any], name: str, **options: Any) -> Any:
        found = metric(name)
        return kind(name, found.description, found.labels, registry=self._registry, **options)
