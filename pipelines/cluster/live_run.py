"""Commands for a live run: status, scale and stop.

They work from any machine that can reach the run's Ray cluster and its run directory.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import ray
from ray.actor import ActorHandle
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from actors.controller import NAMESPACE, Request, RunState, ask, find_controller
from actors.health.monitor import ActorHealth
from pipelines.run.bottleneck import pool_sizes
from pipelines.run.cost import read_cost
from pipelines.run.directory import RunDirectory, read_json_lines
from pipelines.run.heartbeat import read_heartbeat
from pipelines.run.progress import step_lines
from pipelines.run.status import RunStatus, read_status
from rlad.errors import ConfigError, RunDirectoryError
from rlad.integrity.durable import write_atomically


def record_cluster(run: RunDirectory, run_id: str) -> None:
    """Write the cluster address and the id of a run to its run directory."""
    write_atomically(
        run.cluster, json.dumps({"address": ray.get_runtime_context().gcs_address, "run_id": run_id}) + "\n"
    )


def scale(run: RunDirectory, sizes: Mapping[str, int]) -> None:
    """Request other pool sizes from a live run. Returns once the request is queued, not once the workers are ready.

    Raises:
        RunDirectoryError: The run is not alive or not reachable, or cannot scale a pool to the size.
    """
    with _controller_of(run) as controller:
        ask(controller, "request", Request(kind="scale", sizes=dict(sizes)))


def stop(run: RunDirectory) -> None:
    """Request a live run to end after its current step.

    Raises:
        RunDirectoryError: The run is not alive or not reachable.
    """
    with _controller_of(run) as controller:
        ask(controller, "request", Request(kind="stop", sizes={}))


def status(run: RunDirectory) -> RunState | None:
    """Return the state of a live run; None if the run is not alive. `ended_state` describes the others.

    Raises:
        RunDirectoryError: The directory does not hold a run.
    """
    run.read_config()
    try:
        with _controller_of(run) as controller:
            state: RunState | None = ask(controller, "state")
            return state
    except RunDirectoryError:
        return None


def ended_state(run: RunDirectory) -> RunState:
    """Return the state of a run that is not alive, from its directory.

    The phase is `finished`, `stopped`, `failed`, or `not running` for a run that was killed.
    """
    steps, recorded = read_json_lines(run.metrics), read_status(run)
    if recorded is None:
        phase = "finished" if run.export.is_dir() else "not running"
    else:
        phase = "not running" if recorded.status is RunStatus.RUNNING else recorded.status.value
    return RunState(
        phase=phase,
        step=int(steps[-1]["step"]) if steps else 0,
        total_steps=run.read_config().training.steps,
        pools={},
        metrics={},
        updated_at=recorded.updated_at if recorded is not None else run.config.stat().st_mtime,
    )


def parse_sizes(pairs: list[str]) -> dict[str, int]:
    """Parse sizes of the form `rollout=8`.

    Raises:
        ConfigError: A size has another form.
    """
    sizes: dict[str, int] = {}
    for pair in pairs:
        pool, _, size = pair.partition("=")
        if not size.isdecimal():
            raise ConfigError(f"expected POOL=WORKERS, for example rollout=8; got {pair!r}")
        sizes[pool] = int(size)
    return sizes


def print_status(run: RunDirectory, state: RunState | None, console: Console) -> None:
    """Print the state of a live run, or the progress recorded in the run directory if the run is not alive."""
    if state is None:
        ended, recorded = ended_state(run), read_status(run)
        condition = ended.phase if ended.phase == "finished" else f"{ended.phase}; continue it with --resume"
        console.print(
            f"{run.path}: {condition}, {ended.step} of {ended.total_steps} steps", soft_wrap=True, highlight=False
        )
        if recorded is not None and recorded.reason is not None and ended.phase == recorded.status:
            console.print(f"  {recorded.reason}", soft_wrap=True, highlight=False, markup=False)
        _print_cost(run, console)
        return
    console.print(
        f"{run.path}: {state.phase}, {state.step} of {state.total_steps} steps", soft_wrap=True, highlight=False
    )
    if (driver := read_heartbeat(run)) is not None and driver.is_late:
        console.print(
            f"[red]no heartbeat of the driver[/] for {driver.age_s:.0f} s: it is stopped, or its machine is (process "
            f"{driver.process.pid} on {driver.process.node}). What follows is its last state",
            soft_wrap=True,
            highlight=False,
        )
    if state.metrics:
        sizes = pool_sizes(run.read_config(), {name: pool.target for name, pool in state.pools.items()})
        console.print("\n".join(step_lines(state.metrics, None, sizes)), highlight=False)
    _print_cost(run, console)
    table = Table()
    for column in ("pool", "target", "ready", "starting", "draining"):
        table.add_column(column, justify="left" if column == "pool" else "right")
    for name, pool in state.pools.items():
        table.add_row(name, str(pool.target), str(pool.ready), str(pool.starting), str(pool.draining))
    console.print(table)
    if state.actors:
        console.print(_actor_table(state.actors))


def _print_cost(run: RunDirectory, console: Console) -> None:
    if (cost := read_cost(run)) is not None:
        console.print(f"cost: {cost.total}", soft_wrap=True, highlight=False)


def _actor_table(actors: Sequence[ActorHealth]) -> Table:
    """Return a table with the health of each process: at most 80 columns wide."""
    table = Table()
    table.add_column("actor", max_width=36, overflow="ellipsis", no_wrap=True)
    table.add_column("state")
    table.add_column("last heartbeat", justify="right")
    table.add_column("restarts", justify="right")
    for actor in actors:
        state = actor.state if actor.state == "alive" else f"[red]{actor.state}[/]"
        table.add_row(escape(actor.name), state, f"{actor.seen_s:.0f} s ago", str(actor.restarts))
    return table


@contextmanager
def _controller_of(run: RunDirectory) -> Iterator[ActorHandle]:
    if not run.cluster.is_file():
        raise RunDirectoryError(f"no run is alive in {run.path}: it has no file {run.cluster.name}")
    location: dict[str, Any] = json.loads(run.cluster.read_text())
    try:
        ray.init(address=location["address"], namespace=NAMESPACE, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise RunDirectoryError(
            f"the cluster of {run.path} does not answer at {location['address']}: the run has ended, or its cluster is "
            "not reachable from this machine"
        ) from error
    try:
        yield find_controller(location["run_id"])
    finally:
        ray.shutdown()
