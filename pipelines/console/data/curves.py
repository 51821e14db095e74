"""Metrics of a run as columns, read once and continued while the run appends lines."""

from __future__ import annotations

import json
import math
import threading
from array import array
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rlad.errors import CorruptFileError

_MAX_RUNS = 64
_NOT_METRICS = frozenset({"step", "time"})


@dataclass(slots=True)
class Curve:
    """Values of one metric.

    Attributes:
        steps: Steps that recorded it, ascending.
        values: Their values.
    """

    steps: array[int] = field(default_factory=lambda: array("q"))
    values: array[float] = field(default_factory=lambda: array("d"))


class Curves:
    """Metrics of a run. The columns may grow while they are read, by values of later steps."""

    def __init__(self, columns: dict[str, Curve], last_step: int) -> None:
        self._columns, self.last_step = columns, last_step

    @property
    def names(self) -> list[str]:
        """Names of all metrics, sorted."""
        return sorted(self._columns)

    def last(self, name: str, count: int) -> list[float]:
        """Return the last finite values of a metric, at most `count`; empty if no step recorded it."""
        curve = self._columns.get(name)
        return [] if curve is None else [value for value in curve.values[-count:] if math.isfinite(value)]

    def points(self, name: str, *, buckets: int) -> tuple[list[int], list[float | None]]:
        """Return a metric for a line of `buckets` pixels: steps and values; None for a value that is not finite.

        Of each bucket of steps the first, lowest, highest and last value remain (M4 aggregation), so the line looks
        the same as with all points.
        """
        curve = self._columns.get(name)
        if curve is None:
            return [], []
        values = curve.values[:]
        steps = curve.steps[: len(values)]
        kept = _kept(steps, values, buckets)
        chosen = (values[index] for index in kept)
        return [steps[index] for index in kept], [value if math.isfinite(value) else None for value in chosen]


def _kept(steps: Sequence[int], values: Sequence[float], buckets: int) -> list[int]:
    if len(steps) <= 4 * buckets:
        return list(range(len(steps)))
    first, width = steps[0], (steps[-1] - steps[0] + 1) / buckets
    groups: dict[int, list[int]] = {}
    for index, step in enumerate(steps):
        groups.setdefault(int((step - first) / width), []).append(index)
    kept: set[int] = set()
    for group in groups.values():
        kept |= {group[0], group[-1], min(group, key=values.__getitem__), max(group, key=values.__getitem__)}
    return sorted(kept)


@dataclass(slots=True)
class _Read:
    """Part of a file that has been read: its identity, the offset behind the last complete line, and the columns."""

    inode: int = -1
    offset: int = 0
    head: bytes = b""
    last_step: int = 0
    columns: dict[str, Curve] = field(default_factory=dict)


class CurveCache:
    """Reader of metrics files that reads only what was appended since the last time. Threads may share it."""

    def __init__(self) -> None:
        self._files: OrderedDict[Path, _Read] = OrderedDict()
        self._lock = threading.Lock()

    def read(self, path: Path) -> Curves:
        """Return the metrics of a file; none if it does not exist.

        Raises:
            CorruptFileError: A line is invalid.
        """
        with self._lock:
            before = self._files.pop(path, _Read())
            try:
                read = _continued(path, before)
            except FileNotFoundError:
                return Curves({}, 0)
            self._files[path] = read
            while len(self._files) > _MAX_RUNS:
                self._files.popitem(last=False)
            return Curves(dict(read.columns), read.last_step)


def _continued(path: Path, read: _Read) -> _Read:
    with path.open("rb") as file:
        inode, head = path.stat().st_ino, file.read(256)
        # A run that continues from a checkpoint replaces the file.
        if inode != read.inode or not head.startswith(read.head) or path.stat().st_size < read.offset:
            read = _Read(inode=inode)
        file.seek(read.offset)
        new = file.read()
    end = new.rfind(b"\n") + 1  # a last line that is being written has no end yet
    for number, line in enumerate(new[:end].splitlines()):
        try:
            _append(read, json.loads(line))
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise CorruptFileError(
                f"{path} is damaged at line {number + 1} after byte {read.offset}: {type(error).__name__}"
            ) from error
    read.offset += end
    read.head = head
    return read


def _append(read: _Read, line: dict[str, float]) -> None:
    step = int(line["step"])
    for name, value in line.items():
        if name in _NOT_METRICS or not isinstance(value, int | float):
            continue
        curve = read.columns.setdefault(name, Curve())
        curve.steps.append(step)
        curve.values.append(float(value))
    read.last_step = step
