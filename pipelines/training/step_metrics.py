"""One training step's metrics, from the small numbers the driver saw."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from actors.messages import JudgedGroup, SampledGroup
from rlad.contracts import Outcome


@dataclass(frozen=True, slots=True, kw_only=True)
class FollowedGroup:
    """A group on its way through sampling and scoring, with the times (seconds since the epoch) at which it passed, and the ids of its teachers.

    Attributes:
        judged_at: when its verdict was there; scored_at: when all its scores were, and the broker had it.
        is_dropped: its rewards were all equal, and another took its place: it was not scored by teachers, and is not trained on.
    """

    sampled: SampledGroup
    judged: JudgedGroup
    issued_at: float
    sampled_at: float
    judged_at: float
    scored_at: float
    attempts: int
    teachers: tuple[str, ...] = ()
    is_dropped: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class StepTimes:
    """When the driver turned to a step, when the learner had applied it, and when the samplers held its weights; seconds since the epoch."""

    started_at: float
    trained_at: float
    weights_at: float


def step_metrics(
    step: int, groups: Sequence[FollowedGroup], times: StepTimes, learner: Mapping[str, float]
) -> dict[str, float]:
    """Metrics named `area/name_unit`. Rewards, outcomes and lengths are over all that was sampled, dropped groups included: they tell of the policy.

    Args:
        step: that trains on weights of this version, to which the staleness of its tokens is counted.
        groups: all that were sampled for it.
    """
    rewards = [np.asarray(group.judged.rewards) for group in groups]
    outcomes = Counter(Outcome(outcome) for group in groups for outcome in group.judged.outcomes)
    tokens_by_teacher: Counter[str] = Counter()
    tokens_by_age: Counter[int] = Counter()
    for group in groups:
        tokens_by_teacher.update(dict.fromkeys(group.teachers, sum(group.sampled.response_lengths)))
        tokens_by_age.update({step - version: tokens for version, tokens in group.sampled.tokens_by_version.items()})
    lengths = np.concatenate([group.sampled.response_lengths for group in groups])
    first_issued_at, last_sampled_at = (
        min(group.issued_at for group in groups),
        max(group.sampled_at for group in groups),
    )
    return {
        "reward/mean": float(np.mean(np.concatenate(rewards))),
        "reward/equal_groups_fraction": float(np.mean([reward.min() == reward.max() for reward in rewards])),
        **{f"verifier/{outcome.name.lower()}": float(outcomes[outcome]) for outcome in Outcome},
        **{f"teacher/{teacher}_tokens": float(tokens) for teacher, tokens in tokens_by_teacher.items()},
        "rollout/response_tokens": float(lengths.sum()),
        "rollout/response_tokens_mean": float(lengths.mean()),
        "rollout/response_tokens_max": float(lengths.max()),
        "rollout/truncated_fraction": sum(group.sampled.num_truncated for group in groups) / len(lengths),
        # Over the time in which any of them was sampled, at most the step's: samplers that work ahead sample several steps at once.
        "rollout/tokens_per_s": float(lengths.sum())
        / max(min(last_sampled_at - first_issued_at, times.weights_at - times.started_at), 1e-9),
        "rollout/staleness_mean": sum(age * tokens for age, tokens in tokens_by_age.items())
        / max(1, tokens_by_age.total()),
        "rollout/staleness_max": float(max(tokens_by_age, default=0)),
        "rollout/dropped_groups": float(sum(group.is_dropped for group in groups)),
        "rollout/retried_groups": float(sum(group.attempts > 1 for group in groups)),
        **exposed_times(groups, times),
        **learner,
    }


def exposed_times(groups: Sequence[FollowedGroup], times: StepTimes) -> dict[str, float]:
    """`time/*_s`, which add up to the step: generation until the last group was sampled, then what of scoring, of learning and of the weight update was
    left over, that is, not hidden behind the stage before. What was done before the driver turned to the step costs it nothing. `time/teacher_s` is what of
    the scoring was left when the last verdict was there too."""
    sampled_at = max(times.started_at, *(group.sampled_at for group in groups))
    judged_at = max(sampled_at, *(group.judged_at for group in groups))
    scored_at = max(judged_at, *(group.scored_at for group in groups))
    return {
        "time/step_s": times.weights_at - times.started_at,
        "time/generate_s": sampled_at - times.started_at,
        "time/score_s": scored_at - sampled_at,
        "time/teacher_s": scored_at - judged_at if any(group.teachers for group in groups) else 0.0,
        "time/learn_s": max(0.0, times.trained_at - scored_at),
        "time/weights_s": times.weights_at - times.trained_at,
    }
