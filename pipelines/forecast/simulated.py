"""Simulation of a run on other devices: speeds from the forecast's formulas, pool sizes from a split of the devices."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pipelines.forecast.pools import PoolCosts
from pipelines.forecast.step import Sizes, cost_of_step
from pipelines.simulation.simulator import Failures, SimulatedRun, simulate
from pipelines.simulation.workload import Lengths, PoolSizes, Speeds
from rlad.config import RunConfig

DAY_S = 86400.0


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulatedSplit:
    """Simulated run with one split of the devices.

    Attributes:
        sizes: Workers of each pool.
        devices: Devices of all pools.
        staleness: Number of steps by which rollout works ahead.
        speeds: Speeds that were simulated.
        run: Result of the simulator.
    """

    sizes: Sizes
    devices: float
    staleness: int
    speeds: Speeds
    run: SimulatedRun

    @property
    def step_s(self) -> float:
        """Mean seconds per step, over the last whole waves after the first step.

        The first k + 1 steps are opened together, so steps that work ahead by k end in waves of k + 1. A part of a wave
        is not representative.
        """
        times = [step.times.weights_at for step in self.run.steps]
        intervals, wave = len(times) - 1, self.staleness + 1
        if not intervals:
            return self.run.makespan_s
        counted = intervals // wave * wave or intervals
        return (times[-1] - times[-1 - counted]) / counted

    @property
    def efficiency(self) -> float:
        """Share of a step in which the pool with the most work is busy: 1 where all other work and waits are hidden."""
        return self.run.work.most / len(self.run.steps) / self.step_s

    @property
    def tokens_per_s(self) -> float:
        """Response tokens per second over the whole run."""
        return sum(group.summary.num_tokens for step in self.run.steps for group in step.groups) / self.run.makespan_s

    @property
    def bound_by(self) -> str:
        """Pool that gives the lower bound of the run's time, or `longest response`."""
        work = self.run.work
        return "longest response" if work.longest_response >= work.bound else work.bottleneck

    def as_dict(self, *, price_per_hour: float | None) -> dict[str, Any]:
        """Return the results for JSON output."""
        figures = {
            "rollout_workers": self.sizes.rollout,
            "scoring_replicas": dict(self.sizes.scorers),
            "learner_ranks": self.sizes.learner,
            "gpus": self.devices,
            "steps": len(self.run.steps),
            "makespan_s": self.run.makespan_s,
            "makespan_over_bound": self.run.makespan_over_bound,
            "step_s": self.step_s,
            "efficiency": self.efficiency,
            "tokens_per_s": self.tokens_per_s,
            "bound_by": self.bound_by,
            "busy": self.run.busy,
            "lost_workers": self.run.lost_workers,
            "lost": self.run.lost,
        }
        if price_per_hour is not None:
            figures["cost_per_step"] = cost_of_step(self.step_s, self.devices, price_per_hour=price_per_hour)
        return figures


def speeds_of(costs: PoolCosts, sizes: Sizes) -> Speeds:
    """Return the simulator's speeds from the forecast.

    The simulator has one decoding speed: that of full engines if rollout works ahead, and otherwise the mean over a
    step, in which the batch shrinks. The cost of prompts is included per response token. The slowest scoring pool
    stands for all of them.
    """
    config, work = costs.config, costs.work
    staleness = config.training.max_staleness
    decoding = costs.ahead(sizes.rollout, staleness=staleness) if staleness else costs.on_policy(sizes.rollout)
    slowest = slowest_scorer(costs, sizes)
    learning = costs.learning(sizes.learner)
    return Speeds(
        token_s=decoding.token_s,
        slots=decoding.slots,
        teacher_token_s=costs.scoring(slowest, 1).seconds / work.response_tokens if slowest else 0.0,
        verdict_s=costs.verifying().group_s,
        learner_token_s=learning.seconds / (config.training.passes * work.response_tokens),
        update_s=learning.update_s,
        weights_s=costs.weights_s(sum(sizes.devices(config).values())),
    )


def slowest_scorer(costs: PoolCosts, sizes: Sizes) -> str | None:
    """Return the scoring pool that needs the most time for a step; None if the run has none."""
    return max(sizes.scorers, key=lambda pool: costs.scoring(pool, sizes.scorers[pool]).seconds, default=None)


def simulate_split(
    config: RunConfig,
    sizes: Sizes,
    *,
    lengths: Lengths,
    speeds: Speeds,
    teachers: int,
    failures_per_day: float,
    restart_s: float,
    steps: int,
) -> SimulatedSplit:
    """Simulate a run with these pool sizes.

    Args:
        config: Configuration of the run.
        sizes: Workers of each pool.
        lengths: Distribution of response lengths.
        speeds: Speeds of the engines.
        teachers: Replicas of the scoring pool; 0 for none.
        failures_per_day: Failures of the whole run, spread evenly over its devices. A failure ends the worker of the
            device, or all ranks of the learner.
        restart_s: Seconds until the replacement of a lost worker serves, or the learner's ranks train again.
        steps: Number of steps.
    """
    failures = None
    if failures_per_day:
        failures = failures_of(config, sizes, teachers=teachers, per_day=failures_per_day, restart_s=restart_s)
    verifier = config.verifier_pool
    bounded = config.model_copy(
        update={
            "training": config.training.model_copy(update={"steps": steps}),
            "learner": config.learner.model_copy(update={"ranks": sizes.learner}),
        }
    )
    run = simulate(
        bounded,
        lengths=lengths,
        speeds=speeds,
        sizes=PoolSizes(
            rollout=sizes.rollout, teacher=teachers, verifier=verifier.workers * verifier.processes_per_worker
        ),
        failures=failures,
    )
    return SimulatedSplit(
        sizes=sizes,
        devices=sum(sizes.devices(config).values()),
        staleness=config.training.max_staleness,
        speeds=speeds,
        run=run,
    )


def failures_of(config: RunConfig, sizes: Sizes, *, teachers: int, per_day: float, restart_s: float) -> Failures:
    """Return the failures of each pool if those of the run are spread evenly over its devices.

    A run on CPU has them spread over its workers. The failures of all scoring pools are those of the simulated one.
    """
    by_pool = sizes.devices(config)
    if not sum(by_pool.values()):
        by_pool = {"rollout": float(sizes.rollout), "teacher": float(teachers), "learner": float(sizes.learner)}
    scoring = sum(devices for pool, devices in by_pool.items() if pool not in ("rollout", "learner"))
    device_s = DAY_S * sum(by_pool.values()) / per_day
    return Failures(
        mean_between_s=device_s * sizes.rollout / by_pool["rollout"],
        restart_s=restart_s,
        teacher_between_s=device_s * teachers / scoring if teachers else None,
        learner_between_s=device_s / by_pool["learner"],
    )
