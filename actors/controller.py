"""Run controller: a named actor that connects commands such as `rlad scale` with the driver of a live run.

The driver publishes its state to the controller and takes requests from it. A command therefore needs no access to the
driver's process or machine, and requests are queued while the driver is busy. Only the driver acts on them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import ray
from ray.actor import ActorHandle

from actors.health.monitor import ActorHealth
from actors.pool.pool import PoolState
from actors.remote_errors import as_rlad_error
from rlad.errors import RladError, RunDirectoryError

NAMESPACE = "rlad"
_ANSWER_TIMEOUT_S = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RunState:
    """State of a run.

    Attributes:
        phase: Name of the current phase.
        step: Number of trained steps.
        total_steps: Number of steps of the run.
        pools: Size of each pool by name.
        actors: Health of each process; empty for a run that is not alive.
        metrics: Metrics of the last trained step.
        updated_at: Time of this state, in seconds since the epoch.
    """

    phase: str
    step: int
    total_steps: int
    pools: Mapping[str, PoolState]
    metrics: Mapping[str, float]
    updated_at: float
    actors: tuple[ActorHealth, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """Request to a live run.

    Attributes:
        kind: `scale` changes pool sizes; `stop` ends the run after its current step.
        sizes: Target size of each pool by name; empty for `stop`.
    """

    kind: Literal["scale", "stop"]
    sizes: Mapping[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolBounds:
    """Bounds of the size of a pool.

    Attributes:
        at_least: Minimum number of workers.
        at_most: Maximum number of workers; None means unlimited.
    """

    at_least: int = 1
    at_most: int | None = None


class RunController:
    """Actor class of the controller."""

    def __init__(self, pools: Mapping[str, PoolBounds]) -> None:
        """
        Args:
            pools: Bounds of each pool that can be scaled, by name.
        """
        self._pools = pools
        self._state: RunState | None = None
        self._requests: asyncio.Queue[Request] = asyncio.Queue()

    async def publish(self, state: RunState) -> None:
        """Replace the published state of the run."""
        self._state = state

    async def state(self) -> RunState | None:
        """Return the last published state; None before the first one."""
        return self._state

    async def request(self, request: Request) -> None:
        """Queue a request for the driver.

        Raises:
            RunDirectoryError: The run cannot scale a requested pool, or a size is outside of the pool's bounds.
        """
        for pool, size in request.sizes.items():
            if pool not in self._pools:
                raise RunDirectoryError(f"cannot scale {pool!r}: this run can scale {', '.join(self._pools)}")
            bounds = self._pools[pool]
            if size < 1:
                raise RunDirectoryError(
                    f"a pool requires at least one worker; got {pool}={size}. To end the run, use `rlad stop`"
                )
            if size < bounds.at_least or (bounds.at_most is not None and size > bounds.at_most):
                raise RunDirectoryError(
                    f"{pool}={size} is outside of the bounds in this run's configuration: "
                    f"{bounds.at_least} to {bounds.at_most or 'unlimited'}"
                )
        await self._requests.put(request)

    async def next_request(self, wait_s: float) -> Request | None:
        """Return the oldest request; None if there is none within `wait_s`."""
        try:
            return await asyncio.wait_for(self._requests.get(), wait_s)
        except TimeoutError:
            return None


def start_controller(
    run_id: str, pools: Mapping[str, PoolBounds], *, label_selector: dict[str, str] | None = None
) -> ActorHandle:
    """Start the controller of a run on a node that matches the selector. The controller ends with the driver."""
    controller = ray.remote(RunController).options(
        name=_name(run_id), namespace=NAMESPACE, num_cpus=0, label_selector=label_selector or {}
    )
    return controller.remote(pools)


def find_controller(run_id: str) -> ActorHandle:
    """Return the controller of a live run in the cluster to which this process is connected.

    Raises:
        RunDirectoryError: The run is not alive in this cluster.
    """
    try:
        return ray.get_actor(_name(run_id), namespace=NAMESPACE)
    except ValueError as error:
        raise RunDirectoryError(
            f"run {run_id} is not running in this cluster: it has ended or runs in another cluster"
        ) from error


def ask(controller: ActorHandle, method: str, *arguments: Any) -> Any:
    """Call a method of a controller and wait for its result. Must not be called from an event loop.

    Raises:
        RladError: The controller refused the call or did not answer.
    """
    try:
        return ray.get(getattr(controller, method).remote(*arguments), timeout=_ANSWER_TIMEOUT_S)
    except Exception as error:
        converted: RladError = as_rlad_error(error, who="the run's controller")
        raise converted from error


def _name(run_id: str) -> str:
    return f"rlad-controller-{run_id}"
