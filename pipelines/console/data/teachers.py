"""Teachers of the runs below a directory: where each is, who uses it, and how it agrees with its students."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pipelines.console.data.curves import Curves
from pipelines.console.data.runs import Runs, RunSummary, read_settings

_RECENT_STEPS = 20
# Kinds of a teacher section by the key that selects the kind.
_KINDS: Mapping[str, Literal["model", "service", "remote service"]] = {
    "path": "model",
    "service": "service",
    "url": "remote service",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class TeacherUse:
    """A teacher in one run.

    Attributes:
        run: The run.
        id: Id of the teacher in the run.
        replicas: Number of replicas that the run deploys; None for a service, which runs share.
        tokens: Tokens that it scored in the last step; None before the first.
        idle: Median idle share of its replicas over the last steps; None if unknown.
        kl: Mean log-ratio of policy and teacher over the last steps, nats: an estimate of their KL; None if unknown.
        disagreement: Share of tokens with an advantage that imitation would move against it, over the last steps; None
            if unknown. `kl` and `disagreement` are those of all teachers of the run.
    """

    run: RunSummary
    id: str
    replicas: int | None
    tokens: float | None
    idle: float | None
    kl: float | None
    disagreement: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class TeacherView:
    """A teacher and the runs that use it.

    Attributes:
        place: Model reference, name of the service on a run's cluster, or URL.
        kind: `model` (each run deploys its own replicas), `service` or `remote service`.
        uses: Uses, running runs first, then those with the newest records.
    """

    place: str
    kind: str
    uses: Sequence[TeacherUse]

    @property
    def num_alive(self) -> int:
        """Number of runs that use it now."""
        return sum(use.run.is_alive for use in self.uses)


def teachers_of(runs: Runs) -> list[TeacherView]:
    """Return the teachers of all readable runs: those of running ones first, then by their newest run."""
    found: dict[tuple[str, str], list[TeacherUse]] = {}
    for summary in runs.summaries():
        if summary.state == "damaged":
            continue
        run = runs.find(summary.name)
        curves = runs.curves(run)
        for name, section in _sections(read_settings(run)):
            key = next((key for key in _KINDS if section.get(key)), None)
            if key is not None:
                use = _use(summary, curves, name, section)
                found.setdefault((str(section[key]), _KINDS[key]), []).append(use)
    # Both sorts are stable: among the running ones, and among the others, the newest run comes first.
    views = [
        TeacherView(place=place, kind=kind, uses=sorted(uses, key=lambda use: not use.run.is_alive))
        for (place, kind), uses in found.items()
    ]
    return sorted(views, key=lambda view: -view.num_alive)


def _sections(config: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield the id and the section of each teacher of a configuration, which was not validated."""
    several = config.get("teachers")
    sections = {"teacher": config.get("teacher"), **(several if isinstance(several, dict) else {})}
    for name, section in sections.items():
        if isinstance(section, dict):
            yield str(name), section


def _use(run: RunSummary, curves: Curves, name: str, section: Mapping[str, Any]) -> TeacherUse:
    tokens = curves.last(f"teacher/{name}_tokens", 1)
    return TeacherUse(
        run=run,
        id=name,
        replicas=int(section.get("replicas", 1)) if "path" in section else None,
        tokens=tokens[-1] if tokens else None,
        idle=_median(curves.last("idle/teacher" if name == "teacher" else f"idle/teacher-{name}", _RECENT_STEPS)),
        kl=_median(curves.last("objective/log_ratio_teacher_mean", _RECENT_STEPS)),
        disagreement=_median(curves.last("objective/teacher_disagreement_fraction", _RECENT_STEPS)),
    )


def _median(values: Iterable[float]) -> float | None:
    found = list(values)
    return statistics.median(found) if found else None
