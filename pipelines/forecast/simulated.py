"""Simulations of a run as it would be on devices that are not here: speeds by the forecast's formulas, pools by a split of the devices."""

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
    """One division of the devices, and the run that the simulator made of it.

    Attributes:
        devices: of all pools.
        step_s: from the first step's end to the last's, on average. Steps that work ahead come in waves, so none of them alone says much.
        tokens_per_s: response tokens, over the whole run.
    """

    sizes: Sizes
    devices: float
    speeds: Speeds
    run: SimulatedRun

    @property
    def step_s(self) -> float:
        times = [step.times.weights_at for step in self.run.steps]
        return (times[-1] - times[0]) / (len(times) - 1) if len(times) > 1 else self.run.makespan_s

    @property
    def tokens_per_s(self) -> float:
        return sum(group.summary.num_tokens for step in self.run.steps for group in step.groups) / self.run.makespan_s

    @property
    def bound_by(self) -> str:
        """What the lower bound is that of."""
        work = self.run.work
        return "longest response" if work.longest_response >= work.bound else work.bottleneck

    def as_dict(self, *, price_per_hour: float | None) -> dict[str, Any]:
        """For programs."""
        figures = {
            "rollout_workers": self.sizes.rollout,
            "scoring_replicas": dict(self.sizes.scorers),
            "learner_ranks": self.sizes.learner,
            "gpus": self.devices,
            "steps": len(self.run.steps),
            "makespan_s": self.run.makespan_s,
            "makespan_over_bound": self.run.makespan_over_bound,
            "step_s": self.step_s,
            "tokens_per_s": self.tokens_per_s,
            "bound_by": self.bound_by,
            "busy": self.run.busy,
            "lost_workers": self.run.lost_workers,
        }
        if price_per_hour is not None:
            figures["cost_per_step"] = cost_of_step(self.step_s, self.devices, price_per_hour=price_per_hour)
        return figures


def speeds_of(costs: PoolCosts, sizes: Sizes) -> Speeds:
    """What the simulator needs to know of the devices.

    It knows one speed of decoding: where the samplers work ahead that of engines as full as they get, strictly on-policy the mean over a step, whose
    batch shrinks. Prompts are counted in, by the response token. Of several pools that score, the one with the most to do stands for all.
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
        learner_token_s=learning.seconds / work.response_tokens,
        update_s=learning.update_s,
        weights_s=costs.weights_s(sum(sizes.devices(config).values())),
    )


def slowest_scorer(costs: PoolCosts, sizes: Sizes) -> str | None:
    """Of the pools that score, the one whose work takes longest."""
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
    """Take a run of so many steps through the simulator, with pools of these sizes.

    Args:
        teachers: replicas of the pool that scores; 0 where none does.
        failures_per_day: of the whole run, spread evenly over its devices; only a rollout worker's are simulated.
        restart_s: until a lost worker's replacement serves.
    """
    by_pool = sizes.devices(config)
    devices = sum(by_pool.values())
    whole, rollout = (
        (devices, by_pool["rollout"])
        if devices
        else (float(sizes.rollout + teachers + sizes.learner), float(sizes.rollout))
    )
    failures = None
    if failures_per_day:
        failures = Failures(
            mean_between_s=DAY_S * sizes.rollout / (failures_per_day * rollout / whole), restart_s=restart_s
        )
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
    return SimulatedSplit(sizes=sizes, devices=devices, speeds=speeds, run=run)
