"""Spans of a run's workers, from its timeline.json."""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipelines.console.problems import NotFoundError
from pipelines.run.directory import RunDirectory
from rlad.errors import CorruptFileError

_MAX_RUNS = 4
_MAX_SPANS = 4000
# Length of the window that the page opens with, seconds.
_DEFAULT_WINDOW_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """Work of one worker, or of a pool without workers of their own.

    Attributes:
        lane: Worker.
        pool: Pool of the worker.
        name: Name of the work, for example a group or a step.
        start_s: Begin, seconds since the first span of the run.
        end_s: End.
    """

    lane: str
    pool: str
    name: str
    start_s: float
    end_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """Spans of a part of a run.

    Attributes:
        start_s: Begin of the window, seconds since the first span of the run.
        end_s: End of the window.
        total_s: End of the last span.
        lanes: Workers of the run with their pools, in the order of the page.
        spans: Spans within the window, by begin.
        left_out: Number of shorter spans that were left out, because the window has too many.
        busy: Share of the window in which each worker had work, by worker.
    """

    start_s: float
    end_s: float
    total_s: float
    lanes: Sequence[tuple[str, str]]
    spans: Sequence[Span]
    left_out: int
    busy: Mapping[str, float]


class Timelines:
    """Timelines of the last runs that were read. Threads may share it."""

    def __init__(self) -> None:
        self._read: OrderedDict[tuple[str, int, int], list[Span]] = OrderedDict()
        self._lock = threading.Lock()

    def window(self, run: RunDirectory, start_s: float | None, end_s: float | None) -> Window:
        """Return the spans between two times; by default the last minute.

        Raises:
            NotFoundError: The run has written no timeline yet.
            CorruptFileError: The file is damaged.
        """
        spans = self._spans(run)
        total_s = max((span.end_s for span in spans), default=0.0)
        end_s = min(total_s, max(0.0, total_s if end_s is None else end_s))
        start_s = min(end_s, max(0.0, end_s - _DEFAULT_WINDOW_S if start_s is None else start_s))
        within = [span for span in spans if span.end_s >= start_s and span.start_s <= end_s]
        longest = sorted(within, key=lambda span: span.start_s - span.end_s)[:_MAX_SPANS]
        lanes = sorted({(span.pool, span.lane) for span in spans}, key=lambda lane: (lane[0], _natural(lane[1])))
        return Window(
            start_s=start_s,
            end_s=end_s,
            total_s=total_s,
            lanes=[(lane, pool) for pool, lane in lanes],
            spans=sorted(longest, key=lambda span: span.start_s),
            left_out=len(within) - len(longest),
            busy={
                lane: _busy_share([span for span in within if span.lane == lane], start_s, end_s) for _, lane in lanes
            },
        )

    def _spans(self, run: RunDirectory) -> list[Span]:
        try:
            stat = run.timeline.stat()
        except FileNotFoundError as error:
            raise NotFoundError(
                "this run has written no timeline yet: it does so at checkpoints and at its end"
            ) from error
        key = (str(run.path), stat.st_mtime_ns, stat.st_size)
        with self._lock:
            if key not in self._read:
                self._read[key] = _parse(run)
                while len(self._read) > _MAX_RUNS:
                    self._read.popitem(last=False)
            self._read.move_to_end(key)
            return self._read[key]


def _parse(run: RunDirectory) -> list[Span]:
    try:
        events: list[dict[str, Any]] = json.loads(run.timeline.read_bytes())["traceEvents"]
        begins: dict[str, dict[str, Any]] = {}
        pairs = []
        for event in events:
            if event["ph"] == "b":
                begins[event["id"]] = event
            elif (begin := begins.pop(event["id"], None)) is not None:
                pairs.append((begin, float(event["ts"]) / 1e6))
        first_s = min((float(begin["ts"]) / 1e6 for begin, _ in pairs), default=0.0)
        return [
            Span(
                lane=str(begin["tid"]),
                pool=str(begin["cat"]),
                name=str(begin["name"]),
                start_s=float(begin["ts"]) / 1e6 - first_s,
                end_s=end_s - first_s,
            )
            for begin, end_s in pairs
        ]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CorruptFileError(f"{run.timeline} is damaged: {type(error).__name__}") from error


def _busy_share(spans: Sequence[Span], start_s: float, end_s: float) -> float:
    """Return the share of the window that is covered by a span. Overlapping spans count once."""
    covered_s, until_s = 0.0, start_s
    for span in sorted(spans, key=lambda span: span.start_s):
        begin_s, finish_s = max(span.start_s, until_s), min(span.end_s, end_s)
        if finish_s > begin_s:
            covered_s += finish_s - begin_s
            until_s = finish_s
    return covered_s / (end_s - start_s) if end_s > start_s else 0.0


def _natural(name: str) -> tuple[str, int]:
    stem = name.rstrip("0123456789")
    return stem, int(name[len(stem) :] or 0)
