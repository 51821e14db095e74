"""A step of a run: what its pools take together, which of them bounds it, and what it costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from pipelines.forecast.assumptions import Array
from pipelines.forecast.pools import Decoding, Learning, PoolCosts, Scoring
from rlad.config import RunConfig
from rlad.verifiers import reward_models

# What bounds a step that works ahead where no pool does: a response has k + 1 steps' time.
LONGEST_RESPONSE = "longest response"


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """Workers of the pools that have devices.

    Attributes:
        scorers: replicas of each pool that scores.
    """

    rollout: int
    scorers: Mapping[str, int]
    learner: int

    def devices(self, config: RunConfig) -> dict[str, float]:
        """Of each pool."""
        pools = config.scoring_pools
        return {
            "rollout": self.rollout * config.rollout.gpus_per_worker,
            **{pool: replicas * pools[pool].gpus_per_replica for pool, replicas in self.scorers.items()},
            "learner": self.learner * config.learner.gpus_per_rank,
        }

    def overrides(self) -> list[str]:
        """As settings on the command line."""
        sections = {pool: pool.replace("teacher-", "teachers.", 1) for pool in self.scorers}
        return [
            f"rollout.workers={self.rollout}",
            *(f"{sections[pool]}.replicas={replicas}" for pool, replicas in self.scorers.items()),
            f"learner.ranks={self.learner}",
        ]


def sizes_of(config: RunConfig) -> Sizes:
    """As configured."""
    scorers = {pool: model.replicas for pool, model in config.scoring_pools.items()}
    return Sizes(rollout=config.rollout.workers, scorers=scorers, learner=config.learner.ranks)


@dataclass(frozen=True, slots=True, kw_only=True)
class StepTime:
    """Seconds of a step under one staleness.

    Attributes:
        seconds: from one step to the next.
        busy: of that, seconds each pool works.
        bound_by: the pool that the step waits for most, or `longest response`.
        exposed_s: of a strictly on-policy step, what no sampling hides; 0 where the samplers work ahead.
        decoding: of the rollout pool.
    """

    seconds: float
    busy: Mapping[str, float]
    bound_by: str
    exposed_s: float
    decoding: Decoding


def step_time(costs: PoolCosts, sizes: Sizes, *, staleness: int) -> StepTime:
    """A step with pools of these sizes, strictly on-policy at staleness 0."""
    decoding = costs.on_policy(sizes.rollout) if staleness == 0 else costs.ahead(sizes.rollout, staleness=staleness)
    scoring = {pool: costs.scoring(pool, replicas) for pool, replicas in sizes.scorers.items()}
    weights_s = costs.weights_s(sum(sizes.devices(costs.config).values()))
    return combined(costs, decoding, scoring, costs.learning(sizes.learner), staleness=staleness, weights_s=weights_s)


def combined(
    costs: PoolCosts,
    decoding: Decoding,
    scoring: Mapping[str, Scoring],
    learning: Learning,
    *,
    staleness: int,
    weights_s: float,
) -> StepTime:
    """The same of pools whose seconds are known."""
    judging = costs.verifying()
    updates_s = costs.config.training.updates_per_step * learning.update_s
    busy = {
        "rollout": decoding.seconds + (costs.load_s if staleness else 0.0),
        **{pool: each.seconds for pool, each in scoring.items()},
        "verifier": judging.seconds,
        "learner": learning.seconds + updates_s,
    }
    if staleness == 0:
        return _on_policy(
            costs.config, decoding, [judging, *scoring.values()], learning, busy, after_s=updates_s + weights_s
        )
    last_group_s = max(judging.group_s, *(each.group_s for each in scoring.values()), 0.0)
    way_s = decoding.longest_s + last_group_s + learning.last_part_s + updates_s + weights_s
    waits = busy | {LONGEST_RESPONSE: way_s / (staleness + 1)}
    bound_by = max(waits, key=waits.__getitem__)
    return StepTime(seconds=waits[bound_by], busy=busy, bound_by=bound_by, exposed_s=0.0, decoding=decoding)


def _on_policy(
    config: RunConfig,
    decoding: Decoding,
    scoring: Sequence[Scoring],
    learning: Learning,
    busy: Mapping[str, float],
    *,
    after_s: float,
) -> StepTime:
    """Groups go on as they are finished, and each pool takes them one after the other: what no sampling hides is what is left when the last one is there.

    Args:
        scoring: the verifier's, and of all pools that score.
        after_s: of the optimizer and the weights, when everything else is done.
    """
    pools = ["verifier", *(pool for pool in busy if pool not in ("rollout", "verifier", "learner"))]
    done = {
        pool: served(decoding.groups_done_s, each.seconds, each.group_s)
        for pool, each in zip(pools, scoring, strict=True)
    }
    scored_s = np.maximum.reduce(list(done.values()))
    last_s = float(scored_s[-1])
    learned_s = (
        last_s + learning.seconds
    )  # a mean over tokens is over a number that is known only at the end: nothing is done before
    if config.objective.aggregation != "token_mean":
        # The first update goes on while groups arrive; those behind it wait for its last group, so the whole of their work is left.
        later_updates = 1 - 1 / config.training.updates_per_step
        in_turn_s = float(served(scored_s, learning.seconds, 0.0)[-1])
        learned_s = max(last_s + learning.last_part_s + later_updates * learning.seconds, in_turn_s)
    waits = {
        "rollout": decoding.seconds,
        max(done, key=lambda pool: float(done[pool][-1])): last_s - decoding.seconds,
        "learner": learned_s + after_s - last_s,
    }
    seconds = learned_s + after_s
    return StepTime(
        seconds=seconds,
        busy=busy,
        bound_by=max(waits, key=waits.__getitem__),
        exposed_s=seconds - decoding.seconds,
        decoding=decoding,
    )


def served(arrivals_s: Array, seconds: float, each_s: float) -> Array:
    """When a pool is done with each of the groups that arrive at these times.

    Args:
        arrivals_s: ascending.
        seconds: of the pool for all of them together, so a group can begin every so many seconds.
        each_s: from a group's beginning to its end, where that is longer.
    """
    every_s = seconds / len(arrivals_s)
    turns_s = every_s * np.arange(len(arrivals_s))
    began_s: Array = turns_s + np.maximum.accumulate(arrivals_s - turns_s)
    return began_s + max(every_s, each_s)


def fixed_devices(config: RunConfig) -> float:
    """Of reward models, whose work is not forecast."""
    return sum(model.workers * model.gpus_per_worker for model in reward_models(config.verifiers).values())


def cost_of_step(seconds: float, devices: float, *, price_per_hour: float) -> float:
    """Of all devices of a run, which are held whether they work or not."""
    return seconds / 3600 * devices * price_per_hour
