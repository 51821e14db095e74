"""A person's hand on a live run: how it stands, other pool sizes, an end. Works from any machine that reaches the run's cluster."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import ray
from ray.actor import ActorHandle
from rich.console import Console
from rich.table import Table

from actors.controller import NAMESPACE, Request, RunState, ask, find_controller
from pipelines.run.bottleneck import pool_sizes
from pipelines.run.directory import RunDirectory, read_json_lines, write_atomically
from pipelines.run.progress import step_line
from rlad.errors import ConfigError, RunDirectoryError


def record_cluster(run: RunDirectory, run_id: str) -> None:
    """Leave in the run directory where the run can be reached."""
    write_atomically(
        run.cluster, json.dumps({"address": ray.get_runtime_context().gcs_address, "run_id": run_id}) + "\n"
    )


def scale(run: RunDirectory, sizes: Mapping[str, int]) -> None:
    """Ask a live run for other pool sizes. Returns when the run has the request, not when the workers are there.

    Raises:
        RunDirectoryError: the run is not alive or not reachable, or has no such pool to scale.
    """
    with _controller_of(run) as controller:
        ask(controller, "request", Request(kind="scale", sizes=dict(sizes)))


def stop(run: RunDirectory) -> None:
    """Ask a live run to end after its present step.

    Raises:
        RunDirectoryError: the run is not alive or not reachable.
    """
    with _controller_of(run) as controller:
        ask(controller, "request", Request(kind="stop", sizes={}))


def status(run: RunDirectory) -> RunState | None:
    """How a live run stands; None of one that is not alive.

    Raises:
        RunDirectoryError: there is no run.
    """
    run.read_config()
    try:
        with _controller_of(run) as controller:
            state: RunState | None = ask(controller, "state")
            return state
    except RunDirectoryError:
        return None


def parse_sizes(pairs: list[str]) -> dict[str, int]:
    """`rollout=8` and the like.

    Raises:
        ConfigError: not of this form.
    """
    sizes: dict[str, int] = {}
    for pair in pairs:
        pool, _, size = pair.partition("=")
        if not size.isdecimal():
            raise ConfigError(f"a size is given as POOL=WORKERS, for example rollout=8; got {pair!r}")
        sizes[pool] = int(size)
    return sizes


def print_status(run: RunDirectory, state: RunState | None, console: Console) -> None:
    """What a person wants to know; of a run that is not alive, what its directory tells."""
    if state is None:
        steps, total = read_json_lines(run.metrics), run.read_config().training.steps
        done = int(steps[-1]["step"]) if steps else 0
        told = "finished" if run.export.is_dir() else "not running; continue it with --resume"
        console.print(f"{run.path}: {told}, {done} of {total} steps", soft_wrap=True, highlight=False)
        return
    console.print(
        f"{run.path}: {state.phase}, {state.step} of {state.total_steps} steps", soft_wrap=True, highlight=False
    )
    if state.metrics:
        console.print(
            step_line(
                state.metrics,
                None,
                pool_sizes(run.read_config(), {name: pool.target for name, pool in state.pools.items()}),
            ),
            soft_wrap=True,
            highlight=False,
        )
    table = Table()
    for column in ("pool", "wanted", "ready", "starting", "draining"):
        table.add_column(column, justify="left" if column == "pool" else "right")
    for name, pool in state.pools.items():
        table.add_row(name, str(pool.target), str(pool.ready), str(pool.starting), str(pool.draining))
    console.print(table)


@contextmanager
def _controller_of(run: RunDirectory) -> Iterator[ActorHandle]:
    if not run.cluster.is_file():
        raise RunDirectoryError(f"no run is alive in {run.path}: it holds no {run.cluster.name}")
    where: dict[str, Any] = json.loads(run.cluster.read_text())
    try:
        ray.init(address=where["address"], namespace=NAMESPACE, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise RunDirectoryError(
            f"the cluster of {run.path} does not answer at {where['address']}: the run has ended, or is out of reach"
        ) from error
    try:
        yield find_controller(where["run_id"])
    finally:
        ray.shutdown()
