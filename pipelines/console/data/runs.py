"""Runs below a directory: their names, states and progress."""

from __future__ import annotations

import os
import statistics
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from pipelines.console.data.curves import CurveCache, Curves
from pipelines.console.problems import NotFoundError, message_of
from pipelines.run.cost import read_cost
from pipelines.run.directory import RunDirectory, read_json_lines
from pipelines.run.heartbeat import read_heartbeat
from pipelines.run.status import RunStatus, read_status
from rlad.errors import RladError
from rlad.monitoring.cost import RunCost

# Runs of comparisons and schedules lie at most this many folders below the directory.
_DEPTH = 4
# Folders of a run that hold no other run.
_CONFIG = "config.yaml"
_MAX_NAME = 500
_RECENT_STEPS = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSummary:
    """State and progress of a run, for lists.

    Attributes:
        name: Path relative to the directory of all runs.
        state: `running`, `silent` (its driver has no heartbeat), `finished`, `stopped`, `failed`, `ended` (killed), or
            `damaged` (its files cannot be read).
        reason: Reason of a stop or failure, or the problem of a damaged run; None otherwise.
        objective: Name of the objective.
        step: Number of trained steps.
        total_steps: Number of steps of the run; 0 if unknown.
        reward: Mean reward of the last steps; None without one.
        accuracy: Accuracy of the last evaluation; None without one.
        accuracy_before: Accuracy of the first evaluation; None without one.
        step_s: Median time of the last steps, seconds; None before the first.
        updated_at: Time of the last record, seconds since the epoch.
        cost: Cost over all attempts; None if the run recorded none.
    """

    name: str
    state: str
    reason: str | None = None
    objective: str = ""
    step: int = 0
    total_steps: int = 0
    reward: float | None = None
    accuracy: float | None = None
    accuracy_before: float | None = None
    step_s: float | None = None
    updated_at: float = 0.0
    cost: RunCost | None = None

    @property
    def is_alive(self) -> bool:
        """Whether the run takes requests."""
        return self.state in ("running", "silent")

    @property
    def remaining_s(self) -> float | None:
        """Estimated time until the last step, seconds; None for a run that is not running."""
        if self.state != "running" or self.step_s is None:
            return None
        return max(0, self.total_steps - self.step) * self.step_s


class Runs:
    """Runs below one directory. Names from requests never lead out of it."""

    def __init__(self, root: Path) -> None:
        """
        Args:
            root: Directory with run directories, also nested ones.
        """
        self.root = root.expanduser().resolve()
        self._curves = CurveCache()

    def find(self, name: str) -> RunDirectory:
        """Return the run of a name.

        Raises:
            NotFoundError: The name is invalid, or there is no such run.
        """
        parts = PurePosixPath(name).parts
        is_plain = parts and not name.startswith("/") and len(name) <= _MAX_NAME and name == "/".join(parts)
        if not is_plain or any(part in (".", "..") or "\\" in part or "\0" in part for part in parts):
            raise NotFoundError(f"invalid name of a run: {name[:80]!r}")
        path = self.root
        for part in parts:
            path = path / part
            if path.is_symlink():
                raise NotFoundError(f"{name!r} leads through a symbolic link, which the console does not follow")
        if not (path / _CONFIG).is_file():
            raise NotFoundError(f"no run {name!r} below {self.root}")
        return RunDirectory(path)

    def summaries(self) -> list[RunSummary]:
        """Return all runs, the ones with the newest records first."""
        found = [self.summary(name) for name in self._names()]
        return sorted(found, key=lambda run: (-run.updated_at, run.name))

    def summary(self, name: str) -> RunSummary:
        """Return one run.

        Raises:
            NotFoundError: There is no such run.
        """
        run = self.find(name)
        try:
            return self._summary(name, run)
        except (RladError, OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            return RunSummary(name=name, state="damaged", reason=message_of(error), updated_at=_modified_at(run.config))

    def curves(self, run: RunDirectory) -> Curves:
        """Return the metrics of all steps of a run.

        Raises:
            CorruptFileError: A line of the file is invalid.
        """
        return self._curves.read(run.metrics)

    def _names(self) -> Iterator[str]:
        pending = [(self.root, 0)]
        while pending:
            folder, depth = pending.pop()
            try:
                entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
            except OSError:  # removed in the meantime, or not readable
                continue
            if folder != self.root and any(entry.name == _CONFIG and entry.is_file() for entry in entries):
                yield folder.relative_to(self.root).as_posix()
            elif depth < _DEPTH:
                pending += [
                    (Path(entry.path), depth + 1)
                    for entry in entries
                    if entry.is_dir(follow_symlinks=False) and not entry.name.startswith(".")
                ]

    def _summary(self, name: str, run: RunDirectory) -> RunSummary:
        config, curves, cost = read_settings(run), self.curves(run), read_cost(run)
        state, reason = state_of(run)
        evaluations = read_json_lines(run.evaluations)
        rewards, times = curves.last("reward/mean", _RECENT_STEPS), curves.last("time/step_s", _RECENT_STEPS)
        changed = [_modified_at(path) for path in (run.metrics, run.status, run.evaluations, run.config)]
        return RunSummary(
            name=name,
            state=state,
            reason=reason,
            objective=str(config["objective"].get("name", "")),
            step=curves.last_step,
            total_steps=int(config["training"].get("steps", 0)),
            reward=statistics.fmean(rewards) if rewards else None,
            accuracy=float(evaluations[-1]["overall"]["mean"]) if evaluations else None,
            accuracy_before=float(evaluations[0]["overall"]["mean"]) if evaluations else None,
            step_s=statistics.median(times) if times else None,
            updated_at=max(changed),
            cost=None if cost is None else cost.total,
        )


def state_of(run: RunDirectory) -> tuple[str, str | None]:
    """Return the state of a run from its files, and the reason of a stop or failure."""
    recorded, heartbeat = read_status(run), read_heartbeat(run)
    if recorded is None:
        return ("finished" if run.export.is_dir() else "ended"), None
    if recorded.status is not RunStatus.RUNNING:
        return recorded.status.value, recorded.reason
    if heartbeat is None:
        return "ended", "the driver was killed: the run recorded no end"
    if heartbeat.is_late:
        return "silent", f"no heartbeat of the driver for {heartbeat.age_s:.0f} s"
    return "running", None


def read_settings(run: RunDirectory) -> Mapping[str, Any]:
    """Return the resolved configuration of a run as it was written, without validation.

    Raises:
        ValueError: The file is no configuration.
    """
    try:
        settings: Any = yaml.load(run.config.read_bytes(), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except (yaml.YAMLError, RecursionError) as error:
        raise ValueError(f"{run.config} is damaged: {type(error).__name__}") from error
    for section in ("objective", "training"):
        if not isinstance(settings, dict) or not isinstance(settings.get(section), dict):
            raise ValueError(f"{run.config} is damaged: it has no section {section}")
    found: Mapping[str, Any] = settings
    return found


def _modified_at(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0
