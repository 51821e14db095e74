"""JSON API of the console: what its charts and tables load, and what programs may read."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter, Query

from pipelines.console.access import TheConsole, Viewer

router = APIRouter(prefix="/api")

# Pixels of a chart's line, and the maximum number of metrics that one request reads.
_BUCKETS = 400
_MAX_METRICS = 40
Names = Annotated[list[str], Query(alias="metric", max_length=_MAX_METRICS)]


@router.get("/runs")
def runs(visitor: Viewer, console: TheConsole) -> list[dict[str, Any]]:
    """Return all runs."""
    return [asdict(run) for run in console.runs.summaries()]


@router.get("/runs/{name:path}/metrics")
def metrics(name: str, visitor: Viewer, console: TheConsole, names: Names = []) -> dict[str, Any]:  # noqa: B006
    """Return metrics of a run: steps and values of each, null where a value is not finite."""
    run = console.runs.find(name)
    curves = console.runs.curves(run)
    summary = console.runs.summary(name)
    return {
        "state": summary.state,
        "step": curves.last_step,
        "total_steps": summary.total_steps,
        "metrics": {metric: curves.points(metric, buckets=_BUCKETS) for metric in names or curves.names[:_MAX_METRICS]},
    }


@router.get("/runs/{name:path}/pools")
def pools(name: str, visitor: Viewer, console: TheConsole) -> dict[str, Any]:
    """Return the number of workers of each pool of a live run; null if it is not alive."""
    run = console.runs.find(name)
    if not console.runs.summary(name).is_alive:
        return {"pools": None}
    return {"pools": console.settings.live.pools(run)}


@router.get("/runs/{name:path}/timeline")
def timeline(
    name: str, visitor: Viewer, console: TheConsole, start: float | None = None, end: float | None = None
) -> dict[str, Any]:
    """Return the spans of a run's workers between two times, by default of the last minute."""
    return asdict(console.timelines.window(console.runs.find(name), start, end))


@router.get("/schedules")
def schedules(visitor: Viewer, console: TheConsole) -> dict[str, Any]:
    """Return all schedules with their next ticks, and the invalid rows of the store."""
    views, broken = console.schedules.all()
    return {
        "schedules": [
            {
                "name": view.schedule.name,
                "state": view.state,
                "cron": view.schedule.config.cron,
                "timezone": view.schedule.config.timezone,
                "model": view.schedule.config.model,
                "next": [time.isoformat() for time in view.next],
                "history": [{**asdict(tick), "event": tick.event} for tick in view.history],
            }
            for view in views
        ],
        "broken_rows": [asdict(row) for row in broken],
    }


@router.get("/registry")
def registry(visitor: Viewer, console: TheConsole) -> list[dict[str, Any]]:
    """Return the models of the registry with versions and aliases."""
    return [
        {
            "name": model.name,
            "aliases": dict(model.aliases),
            "versions": [
                {
                    "version": version.version,
                    "accuracy": version.evaluation.overall.mean,
                    "created_at": version.created_at,
                    "lineage": asdict(version.lineage),
                    "bytes": version.num_bytes,
                }
                for version in model.versions
            ],
        }
        for model in map(console.models.one, console.models.names())
    ]
