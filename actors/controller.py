"""The run's controller: a named actor through which a person's command reaches a live run, and the run tells how it stands.

The driver alone acts. It leaves its state here and takes requests from here, so a command needs neither the driver's process nor its machine, and a
request that comes while the driver is busy waits.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import ray
from ray.actor import ActorHandle

from actors.pool.pool import PoolState
from actors.remote_errors import as_rlad_error
from rlad.errors import RladError, RunDirectoryError

NAMESPACE = "rlad"
_ANSWER_TIMEOUT_S = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RunState:
    """How a run stands.

    Attributes:
        step: trained steps.
        metrics: of the last of them.
        updated_at: seconds since the epoch.
    """

    phase: str
    step: int
    total_steps: int
    pools: Mapping[str, PoolState]
    metrics: Mapping[str, float]
    updated_at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What a person asks of a live run: `scale` with sizes by pool, or `stop`."""

    kind: Literal["scale", "stop"]
    sizes: Mapping[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolBounds:
    """Sizes that a pool may be given; no `at_most` is no bound."""

    at_least: int = 1
    at_most: int | None = None


class RunController:
    """The actor's body."""

    def __init__(self, pools: Mapping[str, PoolBounds]) -> None:
        """
        Args:
            pools: that can be scaled, and within what.
        """
        self._pools = pools
        self._state: RunState | None = None
        self._requests: asyncio.Queue[Request] = asyncio.Queue()

    async def publish(self, state: RunState) -> None:
        self._state = state

    async def state(self) -> RunState | None:
        return self._state

    async def request(self, request: Request) -> None:
        """Leave a request for the driver.

        Raises:
            RunDirectoryError: a pool that this run does not scale, or a size that it may not have.
        """
        for pool, size in request.sizes.items():
            if pool not in self._pools:
                raise RunDirectoryError(f"this run scales {', '.join(self._pools)}, not {pool!r}")
            bounds = self._pools[pool]
            if size < 1:
                raise RunDirectoryError(
                    f"a pool needs at least one worker, got {pool}={size}: `rlad stop` ends the run"
                )
            if size < bounds.at_least or (bounds.at_most is not None and size > bounds.at_most):
                raise RunDirectoryError(
                    f"{pool}={size} is outside the bounds of this run's configuration: {bounds.at_least} to {bounds.at_most or 'any'}"
                )
        await self._requests.put(request)

    async def next_request(self, wait_s: float) -> Request | None:
        """The oldest request; None if none came within `wait_s`."""
        try:
            return await asyncio.wait_for(self._requests.get(), wait_s)
        except TimeoutError:
            return None


def start_controller(
    run_id: str, pools: Mapping[str, PoolBounds], *, label_selector: dict[str, str] | None = None
) -> ActorHandle:
    """Start the controller of a run, on a node that the selector takes. It ends with the driver."""
    controller = ray.remote(RunController).options(
        name=_name(run_id), namespace=NAMESPACE, num_cpus=0, label_selector=label_selector or {}
    )
    return controller.remote(pools)


def find_controller(run_id: str) -> ActorHandle:
    """The controller of a live run, in the cluster that this process has joined.

    Raises:
        RunDirectoryError: no such run is alive there.
    """
    try:
        return ray.get_actor(_name(run_id), namespace=NAMESPACE)
    except ValueError as error:
        raise RunDirectoryError(
            f"run {run_id} is not running in this cluster: it has ended, or runs elsewhere"
        ) from error


def ask(controller: ActorHandle, method: str, *arguments: Any) -> Any:
    """Call a controller, from outside of any event loop.

    Raises:
        RladError: what the controller refused, or that it does not answer.
    """
    try:
        return ray.get(getattr(controller, method).remote(*arguments), timeout=_ANSWER_TIMEOUT_S)
    except Exception as error:
        ours: RladError = as_rlad_error(error, who="the run's controller")
        raise ours from error


def _name(run_id: str) -> str:
    return f"rlad-controller-{run_id}"
