"""Scraped run: a real Prometheus scrapes a live run, a teacher service and a schedule's daemon.

python -m benchmarks.monitoring --figures docs/figures/monitoring --json OUT

Every metric that a dashboard or an alert names must be there, every query of a dashboard must have an answer, and the
alert for a lost worker must fire after a rollout worker is killed. Needs Debian's package `prometheus`.
"""

from __future__ import annotations

import json
import re
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from benchmarks.chaos import SKIPPED
from benchmarks.measure import JsonPath
from benchmarks.monitoring.pictures import draw, panels
from benchmarks.monitoring.prometheus import FOLDER, SCRAPE_S, Prometheus, prometheus, scrape_configuration
from benchmarks.monitoring.site import SCHEDULE, SERVICE, Background, Site, free_ports, site

# Metrics that this machine cannot have, with the reason.
ABSENT = {"ray_node_gpus_utilization": "no GPU"}
# Alert that must fire after a rollout worker is killed.
ALERT = "RladWorkerLost"
_STEPS_BEFORE, _STEPS_AFTER = 3, 3
_STEPS = 400  # more than are trained: the run is stopped at the end
_TIMEOUT_S = 600.0
_DASHBOARDS = tuple(sorted((FOLDER / "grafana").glob("*.json")))


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """Findings in Prometheus.

    Attributes:
        targets: Scrape targets, and whether each ever answered: `up` or `down`.
        metrics: Number of metrics that dashboards and alerts name.
        missing: Those that Prometheus has not stored, without those that this machine cannot have.
        queries: Number of queries of the dashboards.
        unanswered: Panels with a query without an answer.
        fired_s: Seconds from the kill of a rollout worker to its alert.
    """

    targets: dict[str, str]
    metrics: int
    missing: tuple[str, ...]
    queries: int
    unanswered: tuple[str, ...]
    fired_s: float

    @property
    def is_right(self) -> bool:
        return not self.missing and not self.unanswered and set(self.targets.values()) == {"up"}


def named_metrics() -> set[str]:
    """Return the names of all metrics in the dashboards and alerts."""
    content = "\n".join(path.read_text() for path in (*_DASHBOARDS, FOLDER / "alerts.yml"))
    return set(re.findall(r"\b(?:ray|rlad)_[a-z0-9_]+", content)) - {"rlad_"}


def wait_for(condition: Callable[[], bool], what: str, run: Background) -> None:
    """Wait for a condition while a run is alive.

    Raises:
        RuntimeError: The run has ended.
        TimeoutError: The condition did not hold in time.
    """
    deadline = time.monotonic() + _TIMEOUT_S
    while not condition():
        run.check()
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {_TIMEOUT_S:g} s for {what}")
        time.sleep(0.5)


def measure(folder: Path, figures: Path | None, console: Console) -> Result:
    """Run a site under Prometheus, kill a rollout worker, and ask Prometheus for everything.

    Args:
        folder: Folder for all files.
        figures: Folder for the pictures of the dashboards; None draws none.
        console: Where the progress is printed.
    """
    with site(folder) as running:
        configuration = scrape_configuration(
            discovery=running.discovery,
            schedules=running.schedule_port,
            teacher=SERVICE,
            teacher_port=running.teacher_port,
            token_file=running.token_file,
        )
        [port] = free_ports(1)
        with prometheus(folder / "prometheus", configuration, port) as server:
            began = time.time()
            console.print("cluster, teacher service, schedule daemon and Prometheus are up")
            with running.background("run", *running.run_arguments(_STEPS)) as run:
                fired_s = _kill_a_worker(running, run, server, console)
                running.rlad("schedule", "run-now", SCHEDULE, "--store", running.store)
                console.print("the scheduled run has ended")
                expected = named_metrics() - set(ABSENT)
                wait_for(lambda: expected <= server.names(), "all metrics", run)
                time.sleep(2 * SCRAPE_S)  # rates need two samples
                return _result(server, began=began, expected=expected, fired_s=fired_s, figures=figures)


def _kill_a_worker(running: Site, run: Background, server: Prometheus, console: Console) -> float:
    wait_for(lambda: running.steps() >= _STEPS_BEFORE, "the first steps of the run", run)
    console.print(f"{running.steps()} steps are trained; a rollout worker is killed")
    assert ALERT not in server.firing(), f"{ALERT} fires without a reason"
    killed_at = time.monotonic()
    running.kill_rollout_worker()
    wait_for(lambda: ALERT in server.firing(), f"the alert {ALERT}", run)
    fired_s, steps = time.monotonic() - killed_at, running.steps()
    console.print(f"{ALERT} fired after {fired_s:.0f} s")
    wait_for(lambda: running.steps() >= steps + _STEPS_AFTER, "further steps", run)
    return fired_s


def _result(server: Prometheus, *, began: float, expected: set[str], fired_s: float, figures: Path | None) -> Result:
    end = time.time()

    def answer(query: str) -> list[dict[str, object]]:
        return server.query(query, start=began, end=end)

    shown = [(path.stem, panel) for path in _DASHBOARDS for panel in panels(path)]
    possible = [(name, panel) for name, panel in shown if not any(each in "".join(panel.queries) for each in ABSENT)]
    if figures is not None:
        figures.mkdir(parents=True, exist_ok=True)
        for path in _DASHBOARDS:
            draw(path, answer, figures / f"{path.stem}.png", start=began)
    return Result(
        targets=server.targets(start=began, end=end),
        metrics=len(expected),
        missing=tuple(sorted(expected - server.names())),
        queries=sum(len(panel.queries) for _, panel in possible),
        unanswered=tuple(f"{name}: {panel.title}" for name, panel in possible if not all(map(answer, panel.queries))),
        fired_s=round(fired_s, 1),
    )


def main(
    figures: Annotated[
        Path | None, typer.Option(help="Folder for pictures of the dashboards.", show_default=False)
    ] = None,
    json_path: JsonPath = None,
) -> None:
    """Scrape a live run with Prometheus. Exit with 1 if a metric, an answer or the alert is missing."""
    console = Console()
    if shutil.which("prometheus") is None:
        console.print("skipped: needs Prometheus (apt-get install prometheus)")
        raise typer.Exit(SKIPPED)
    with tempfile.TemporaryDirectory(prefix="rlad-", dir="/tmp", ignore_cleanup_errors=True) as temporary:
        result = measure(Path(temporary), figures, console)
    table = Table("", "", show_header=False)
    for name, value in asdict(result).items():
        table.add_row(name, json.dumps(value) if not isinstance(value, str) else value)
    console.print(table)
    if json_path is not None:
        json_path.write_text(json.dumps(asdict(result), indent=2) + "\n")
    raise typer.Exit(0 if result.is_right else 1)


if __name__ == "__main__":
    typer.run(main)
