"""A step of a run: what its pools take together, which of them bounds it, and what it costs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

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
    costs: PoolCosts, decoding: Decoding, scoring: Mapping[str, Scoring], learning: Learning, *, staleness: int, weights_s: float
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
    last_group_s = max(judging.group_s, *(each.group_s for each in scoring.values()), 0.0)
    if staleness == 0:
        beside = {pool: seconds for pool, seconds in busy.items() if pool != "learner"}
        learner_s = _exposed_learner_s(costs.config, learning, max(beside.values()))
        exposed_s = last_group_s + learner_s + updates_s + weights_s
        # What the learner does beside the others is not waited for: it bounds the step where what is left of it takes longer than they do.
        waits = beside | {"learner": learner_s + updates_s}
        return StepTime(
            seconds=max(beside.values()) + exposed_s, busy=busy, bound_by=max(waits, key=waits.__getitem__), exposed_s=exposed_s, decoding=decoding
        )
    way_s = decoding.longest_s + last_group_s + learning.last_part_s + updates_s + weights_s
    waits = busy | {LONGEST_RESPONSE: way_s / (staleness + 1)}
    bound_by = max(waits, key=waits.__getitem__)
    return StepTime(seconds=waits[bound_by], busy=busy, bound_by=bound_by, exposed_s=0.0, decoding=decoding)


def _exposed_learner_s(config: RunConfig, learning: Learning, others_s: float) -> float:
    """What of a strictly on-policy step's training comes after the last group.

    Gradients are accumulated while groups arrive, so the last part is left, and all updates behind the first, which wait for it; or what the learner
    did not manage meanwhile. A mean over tokens is over a number that is known only at the end: then nothing is done before.
    """
    if config.objective.aggregation == "token_mean":
        return learning.seconds
    later_updates = 1 - 1 / config.training.updates_per_step
    return max(learning.last_part_s + later_updates * learning.seconds, learning.seconds - others_s)


def fixed_devices(config: RunConfig) -> float:
    """Of reward models, whose work is not forecast."""
    return sum(model.workers * model.gpus_per_worker for model in reward_models(config.verifiers).values())


def cost_of_step(seconds: float, devices: float, *, price_per_hour: float) -> float:
    """Of all devices of a run, which are held whether they work or not."""
    return seconds / 3600 * devices * price_per_hour
