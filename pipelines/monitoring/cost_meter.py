"""Meter of a live run's cost: the GPUs and CPUs that its pools have reserved, over time.

Reserved resources cost money whether they are busy or idle, so the meter integrates reservations and not utilization.
Shared teachers are not counted: they belong to their service.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from typing import NoReturn

from actors.pool.workers import Scalable
from pipelines.cluster.resources import Resources, demand_by_pool, generation_demand, planned_workers
from pipelines.run.cost import read_cost, write_cost
from pipelines.run.directory import RunDirectory
from rlad.config import RunConfig
from rlad.config.monitoring.cost import CostConfig
from rlad.errors import ConfigError, StopRequestedError
from rlad.monitoring.cost import ReservedHours, RunCost

logger = logging.getLogger(__name__)

# Time between two readings of the pools' sizes, and between two records. A killed driver loses one record interval.
_READ_S = 1.0
_RECORD_S = 10.0


class CostMeter:
    """Adds up the cost of a run over its attempts, and compares it with the budget."""

    def __init__(self, config: RunConfig, run: RunDirectory, *, on_warning: Callable[[str], None]) -> None:
        """
        Args:
            config: Configuration of the run, with prices and budget.
            run: Run directory, whose record of earlier attempts is continued.
            on_warning: Called once when the cost reaches the warning share of a limit.

        Raises:
            CorruptFileError: The record of earlier attempts is damaged.
        """
        self._run, self._settings, self._on_warning = run, config.cost, on_warning
        self._planned_workers = planned_workers(config)
        before = read_cost(run)
        self._hours = {} if before is None else dict(before.pools)
        self._warned_of = {} if before is None else dict(before.warned_of)
        self._attempts = 1 if before is None else before.attempts + 1
        self._demand: Mapping[str, Resources] = {}
        self._scalable: Mapping[str, Scalable] = {}
        self._reserved: Mapping[str, Resources] = {}
        self._read_at = self._recorded_at = 0.0
        self._used_up = asyncio.Event()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Measure and record for the duration of the block."""
        self._read_at = self._recorded_at = asyncio.get_running_loop().time()
        self._record()
        reading = asyncio.create_task(self._keep_reading())
        try:
            yield
        finally:
            reading.cancel()
            self._read()
            self._record()

    @contextmanager
    def reserving(self, demand: Mapping[str, Resources]) -> Iterator[None]:
        """Count the resources of pools for the duration of the block.

        Args:
            demand: Resources of each pool with its planned number of workers.
        """
        self._read()
        self._demand = self._reserved = demand
        try:
            yield
        finally:
            self._read()
            self._demand, self._scalable, self._reserved = {}, {}, {}

    def follow(self, scalable: Mapping[str, Scalable]) -> None:
        """Count the present workers of these pools from now on, instead of their planned ones."""
        self._scalable = scalable
        self._read()

    @property
    def cost(self) -> RunCost:
        """Cost of the run as of the last reading."""
        return self._settings.cost_of(self._hours)

    @property
    def exhausted(self) -> str | None:
        """Reason to end the run: the limit that is used up; None within the budget."""
        used = _used_limits(self._settings, self.cost, share=1.0)
        return f"the budget is used up ({used}; increase it to continue)" if used else None

    async def wait_exhausted(self) -> NoReturn:
        """Wait until the budget is used up.

        Raises:
            StopRequestedError: It is used up.
        """
        await self._used_up.wait()  # unlimited wait: cancelled at the end of the work that it watches
        raise StopRequestedError(str(self.exhausted))

    def record_step(self) -> dict[str, float]:
        """Record the cost at the end of a step. Return its figures."""
        self._read()
        self._record()
        cost = self.cost
        shares = [use.share for use in self._settings.budget_uses(cost).values()]
        return {
            "cost/gpu_hours": cost.gpu_hours,
            "cost/cpu_hours": cost.cpu_hours,
            **({} if cost.amount is None else {"cost/amount": cost.amount}),
            **({"cost/budget_share": max(shares)} if shares else {}),
        }

    async def _keep_reading(self) -> None:
        while True:
            await asyncio.sleep(_READ_S)
            self._read()
            if self._read_at - self._recorded_at >= _RECORD_S:
                self._record()

    def _read(self) -> None:
        """Add the time since the last reading with the reservations as they were then, and read them again."""
        now = asyncio.get_running_loop().time()
        hours = (now - self._read_at) / 3600
        self._read_at = now
        for pool, reserved in self._reserved.items():
            added = ReservedHours(gpu=hours * reserved.gpus, cpu=hours * reserved.cpus)
            self._hours[pool] = self._hours.get(pool, ReservedHours()) + added
        self._reserved = {pool: self._present(pool, planned) for pool, planned in self._demand.items()}
        self._warn()
        if self.exhausted is not None:
            self._used_up.set()

    def _present(self, pool: str, planned: Resources) -> Resources:
        """Return what a pool has reserved. Workers that start or drain hold their resources too."""
        if pool not in self._scalable:
            return planned
        state = self._scalable[pool].state()
        share = (state.ready + state.starting + state.draining) / self._planned_workers[pool]
        return Resources(cpus=share * planned.cpus, gpus=share * planned.gpus)

    def _warn(self) -> None:
        """Warn once of each limit whose warning share is reached. A changed limit is warned of again."""
        share = self._settings.budget.warn_at
        reached = {
            name: use.limit
            for name, use in self._settings.budget_uses(self.cost).items()
            if use.share >= share and self._warned_of.get(name) != use.limit
        }
        if reached:
            self._warned_of |= reached
            used = _used_limits(self._settings, self.cost, share=share)
            logger.warning("budget=nearly_used used=%s", used)
            self._on_warning(f"the budget is nearly used: {used}. The run ends with a checkpoint when it is used up")
            self._record()

    def _record(self) -> None:
        """Write the record. A disk that refuses it does not end the run: the next record holds all hours."""
        self._recorded_at = self._read_at
        try:
            write_cost(self._run, self._settings, self._hours, attempts=self._attempts, warned_of=self._warned_of)
        except OSError as error:
            logger.warning("cost=not_recorded reason=%s", error)


def require_reachable_limits(config: RunConfig) -> None:
    """Check prices and budget against the pools of a run.

    Raises:
        ConfigError: A price is for a pool that the run does not have, or a limit can never be reached.
    """
    settings, phases = config.cost, [demand_by_pool(config), generation_demand(config)]
    pools = {pool for demand in phases for pool in demand}
    if unknown := sorted(settings.pool_prices_per_gpu_hour.keys() - pools):
        raise ConfigError(
            f"cost.pool_prices_per_gpu_hour: the run has no pool {unknown[0]}; expected one of "
            f"{', '.join(sorted(pools))}"
        )
    hourly = [
        settings.cost_of({pool: ReservedHours(gpu=each.gpus, cpu=each.cpus) for pool, each in demand.items()})
        for demand in phases
    ]
    if settings.budget.gpu_hours is not None and not any(cost.gpu_hours for cost in hourly):
        raise ConfigError(
            "cost.budget.gpu_hours is never reached, because the run reserves no GPU; set cost.budget.cpu_hours instead"
        )
    if settings.budget.amount is not None and not any(cost.amount for cost in hourly):
        raise ConfigError(
            "cost.budget.amount is never reached, because everything that the run reserves is free; set "
            "cost.price_per_gpu_hour for its GPUs, or cost.price_per_cpu_hour for its CPUs"
        )


def require_budget(config: RunConfig, run: RunDirectory) -> None:
    """Check before the start that prices and budget fit the run, and that earlier attempts left some of the budget.

    Raises:
        ConfigError: They do not fit, or the budget is used up.
        CorruptFileError: The record of earlier attempts is damaged.
    """
    require_reachable_limits(config)
    before = read_cost(run)
    used = "" if before is None else _used_limits(config.cost, config.cost.cost_of(before.pools), share=1.0)
    if used:
        raise ConfigError(
            f"the budget of {run.path} is used up: {used}. Continue it with --resume and a larger limit, or null"
        )


def _used_limits(settings: CostConfig, cost: RunCost, *, share: float) -> str:
    """Describe the limits of which at least this share is used; empty if there are none."""
    uses = settings.budget_uses(cost).items()
    return ", ".join(f"cost.budget.{name} {use}" for name, use in uses if use.share >= share)
