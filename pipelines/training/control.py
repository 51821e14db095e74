"""Control of a live run: publishes its state, and executes requests to scale or stop it."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping
from typing import Any

from actors.controller import PoolBounds, RunState
from actors.health.monitor import HeartbeatMonitor
from pipelines.monitoring.run_metrics import RunMetrics
from pipelines.run.bottleneck import pool_sizes
from pipelines.training.deadlines import within
from pipelines.training.pools import Pools
from rlad.config import RunConfig

logger = logging.getLogger(__name__)

_CONTROLLER_TIMEOUT_S = 60.0
# Longest time until the controller gets the run's present state.
_LISTEN_S = 1.0


class RunControl:
    """The driver's side of the run's controller. Requests are executed between two awaits of the driver."""

    def __init__(
        self,
        config: RunConfig,
        pools: Pools,
        controller: Any,
        monitor: HeartbeatMonitor,
        *,
        trained_steps: int,
        metrics: RunMetrics,
    ) -> None:
        """
        Args:
            config: The run's configuration.
            pools: The pools, whose sizes may be changed.
            controller: Handle of the `RunController`.
            monitor: Knows the health of the run's processes.
            trained_steps: Steps that are trained already.
            metrics: Gets the run's present state too.
        """
        self._config, self._pools, self._controller = config, pools, controller
        self._monitor, self._run_metrics = monitor, metrics
        self._trained_steps = trained_steps
        self._metrics: Mapping[str, float] = {}
        self._is_stopping = False
        self._listening: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Handle requests in the background until `close`."""
        self._listening = asyncio.create_task(self._handle_requests())
        self._listening.add_done_callback(_log_failure)

    def close(self) -> None:
        if self._listening is not None:
            self._listening.cancel()

    @property
    def is_stopping(self) -> bool:
        """Whether a request asked the run to stop."""
        return self._is_stopping

    def record_step(self, trained_steps: int, metrics: Mapping[str, float]) -> None:
        """Update the state that is published."""
        self._trained_steps, self._metrics = trained_steps, metrics

    def pool_sizes(self) -> dict[str, int]:
        """Return the target size of each pool."""
        targets = {name: pool.state().target for name, pool in self._pools.scalable.items()}
        return pool_sizes(self._config, targets)

    async def _handle_requests(self) -> None:
        while True:
            state = self._state()
            self._run_metrics.record_state(state)
            await within(
                self._controller.publish.remote(state),
                deadline_s=_CONTROLLER_TIMEOUT_S,
                waiting_for="the run's controller",
            )
            request = await within(
                self._controller.next_request.remote(_LISTEN_S),
                deadline_s=_CONTROLLER_TIMEOUT_S,
                waiting_for="the run's controller",
            )
            if request is not None:
                logger.info("request=%s sizes=%s", request.kind, dict(request.sizes))
                self._is_stopping |= request.kind == "stop"
                for pool, size in request.sizes.items():
                    self._pools.scalable[pool].resize(size)

    def _state(self) -> RunState:
        return RunState(
            phase="stopping" if self._is_stopping else "running",
            step=self._trained_steps,
            total_steps=self._config.training.steps,
            pools={name: pool.state() for name, pool in self._pools.scalable.items()},
            actors=self._monitor.health(),
            metrics=self._metrics,
            updated_at=time.time(),
        )


def scaling_bounds(config: RunConfig, pools: Pools) -> dict[str, PoolBounds]:
    """Return the sizes that each pool may be given."""
    bounds = {pool: PoolBounds() for pool in pools.scalable}
    rollout = PoolBounds(at_least=config.rollout.min_workers, at_most=config.rollout.max_workers)
    return {**bounds, "rollout": rollout}


def _log_failure(listening: asyncio.Task[None]) -> None:
    """Log that requests are no longer handled. The run continues without its controller."""
    if not listening.cancelled() and (error := listening.exception()) is not None:
        logger.warning("the run accepts no more requests error=%s", error)
