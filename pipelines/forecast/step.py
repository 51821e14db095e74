"""Duration, bottleneck and cost of a step, from the costs of its pools."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from pipelines.forecast.assumptions import Array
from pipelines.forecast.pools import Decoding, Learning, PoolCosts, Scoring
from rlad.config import RunConfig
from rlad.verifiers import reward_models

# Bottleneck of a step that works ahead if no pool bounds it: a response has the time of k + 1 steps.
LONGEST_RESPONSE = "longest response"


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """Sizes of the pools that have devices.

    Attributes:
        rollout: Rollout workers.
        scorers: Replicas of each scoring pool.
        learner: Learner ranks.
    """

    rollout: int
    scorers: Mapping[str, int]
    learner: int

    def devices(self, config: RunConfig) -> dict[str, float]:
        """Return the devices of each pool."""
        pools = config.scoring_pools
        return {
            "rollout": self.rollout * config.rollout.gpus_per_worker,
            **{pool: replicas * pools[pool].gpus_per_replica for pool, replicas in self.scorers.items()},
            "learner": self.learner * config.learner.gpus_per_rank,
        }

    def overrides(self) -> list[str]:
        """Return the sizes as configuration overrides for the command line."""
        sections = {pool: pool.replace("teacher-", "teachers.", 1) for pool in self.scorers}
        return [
            f"rollout.workers={self.rollout}",
            *(f"{sections[pool]}.replicas={replicas}" for pool, replicas in self.scorers.items()),
            f"learner.ranks={self.learner}",
        ]


def sizes_of(config: RunConfig) -> Sizes:
    """Return the configured sizes."""
    scorers = {pool: model.replicas for pool, model in config.scoring_pools.items()}
    return Sizes(rollout=config.rollout.workers, scorers=scorers, learner=config.learner.ranks)


@dataclass(frozen=True, slots=True, kw_only=True)
class StepTime:
    """Duration of a step for one staleness.

    Attributes:
        seconds: Time from one step to the next.
        busy: Seconds in which each pool works.
        bound_by: Pool that the step waits for most, or `longest response`.
        exposed_s: Time that sampling does not hide in a strictly on-policy step; 0 if rollout works ahead.
        decoding: Decoding of the rollout pool.
    """

    seconds: float
    busy: Mapping[str, float]
    bound_by: str
    exposed_s: float
    decoding: Decoding


def step_time(costs: PoolCosts, sizes: Sizes, *, staleness: int) -> StepTime:
    """Return the duration of a step with these pool sizes. Staleness 0 is strictly on-policy."""
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
    """Return the duration of a step from the costs of its pools."""
    judging = costs.verifying()
    updates_s = costs.config.training.total_updates_per_step * learning.update_s
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
    _, learned_s = _scored_and_learned(costs.config, decoding, [judging, *scoring.values()], learning)
    way_s = learned_s + updates_s + weights_s
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
    """Return the duration of a strictly on-policy step.

    Groups move to the next pool as soon as they are complete, and each pool serves them in order. The work that is left
    when the last group is sampled is exposed.

    Args:
        config: Configuration of the run.
        decoding: Decoding of the rollout pool.
        scoring: Verifier, then all scoring pools in the order of `busy`.
        learning: Training by the learner.
        busy: Seconds in which each pool works.
        after_s: Seconds of optimizer steps and weight update, after everything else.
    """
    pools = ["verifier", *(pool for pool in busy if pool not in ("rollout", "verifier", "learner"))]
    done, learned_s = _scored_and_learned(config, decoding, scoring, learning)
    last_s = max(float(each_s[-1]) for each_s in done)
    waits = {
        "rollout": decoding.seconds,
        max(zip(pools, done, strict=True), key=lambda each: float(each[1][-1]))[0]: last_s - decoding.seconds,
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


def _scored_and_learned(
    config: RunConfig, decoding: Decoding, scoring: Sequence[Scoring], learning: Learning
) -> tuple[list[Array], float]:
    """Return the times at which each scoring pool completes the groups of a step, and the end of the step's training.

    All times count from the moment at which the groups were issued. Every pool serves this step alone.
    """
    done = [served(decoding.groups_done_s, each.seconds, each.group_s) for each in scoring]
    scored_s = np.maximum.reduce(done)
    last_s = float(scored_s[-1])
    # A mean over tokens needs the token count of all groups, so training starts after the last one.
    if config.objective.aggregation == "token_mean":
        return done, last_s + learning.seconds
    # The first update trains while groups arrive. Later updates wait for its last group, so they are exposed.
    later_updates = 1 - 1 / config.training.total_updates_per_step
    in_turn_s = float(served(scored_s, learning.seconds, 0.0)[-1])
    return done, max(last_s + learning.last_part_s + later_updates * learning.seconds, in_turn_s)


def served(arrivals_s: Array, seconds: float, each_s: float) -> Array:
    """Return the times at which a pool completes groups that arrive at `arrivals_s`: float64 [groups].

    Args:
        arrivals_s: float64 [groups], ascending arrival times.
        seconds: Time of the pool for all groups. A group can start every `seconds / groups`.
        each_s: Time of one group in a replica, if it is longer than that interval.
    """
    every_s = seconds / len(arrivals_s)
    turns_s = every_s * np.arange(len(arrivals_s))
    began_s: Array = turns_s + np.maximum.accumulate(arrivals_s - turns_s)
    return began_s + max(every_s, each_s)


def fixed_devices(config: RunConfig) -> float:
    """Return the devices of reward models. Their work is not forecast."""
    return sum(model.workers * model.gpus_per_worker for model in reward_models(config.verifiers).values())


def cost_of_step(seconds: float, devices: float, *, price_per_hour: float) -> float:
    """Return the cost of a step. All devices are paid for, busy or idle."""
    return seconds / 3600 * devices * price_per_hour
