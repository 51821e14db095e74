"""Metrics of a training step, from the small numbers that the driver keeps of its groups."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from actors.messages import GroupSummary
from rlad.contracts import Outcome, Verdicts


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupTimes:
    """When a group passed its stages, seconds since the epoch.

    Attributes:
        issued_at: It was issued.
        sampled_at: Its responses were sampled.
        verified_at: Its verdicts had arrived.
        scored_at: All its scores had arrived and the broker had accepted it.
    """

    issued_at: float
    sampled_at: float
    verified_at: float
    scored_at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupRecord:
    """Record of a group, which the driver keeps until its step is recorded.

    Attributes:
        summary: Identity and sizes.
        task: Task of the prompt.
        verdicts: The verifier's verdicts.
        worker: Name of the rollout worker, or `traces` for a group that was read from traces.
        times: When it passed its stages.
        attempts: How often it was issued.
        teachers: Ids of the teachers that scored it.
        is_dropped: Its rewards were all equal and another group took its place: no teacher scored it, and it is not
            trained on.
    """

    summary: GroupSummary
    task: str
    verdicts: Verdicts
    worker: str
    times: GroupTimes
    attempts: int
    teachers: tuple[str, ...] = ()
    is_dropped: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class StepTimes:
    """When a step passed its stages, seconds since the epoch.

    Attributes:
        started_at: The driver began to wait for the step.
        trained_at: The learner had applied it.
        weights_at: The samplers had loaded its weights.
    """

    started_at: float
    trained_at: float
    weights_at: float


def sampling_metrics(
    step: int,
    groups: Sequence[GroupRecord],
    times: StepTimes,
    learner: Mapping[str, float],
    *,
    num_abandoned: int = 0,
) -> dict[str, float]:
    """Compute the metrics `area/name_unit` of a step whose groups were sampled.

    Rewards, outcomes and lengths cover all sampled groups, dropped ones included: they describe the policy. Responses
    whose verification timed out or failed have no reward; they are counted in `verifier/timeout`, `verifier/error` and
    `verifier/left_out_fraction`.

    Args:
        step: Number of the step, which trains on weights of this version. Staleness is relative to it.
        groups: All groups that were sampled for the step.
        times: When the step passed its stages.
        learner: The learner's metrics of the step.
        num_abandoned: Number of groups that were abandoned and replaced.
    """
    rewards = [group.verdicts.rewards[group.verdicts.is_judged] for group in groups]
    judged = [reward for reward in rewards if len(reward)]
    outcomes = Counter(Outcome(outcome) for group in groups for outcome in group.verdicts.outcomes.tolist())
    tokens_by_teacher: Counter[str] = Counter()
    tokens_by_age: Counter[int] = Counter()
    for group in groups:
        tokens_by_teacher.update(dict.fromkeys(group.teachers, group.summary.num_tokens))
        tokens_by_age.update({step - version: tokens for version, tokens in group.summary.tokens_by_version.items()})
    lengths = np.concatenate([group.summary.response_lengths for group in groups])
    first_issued_at = min(group.times.issued_at for group in groups)
    last_sampled_at = max(group.times.sampled_at for group in groups)
    # The time during which any group was sampled, at most the step's: samplers that work ahead sample several steps at
    # once.
    sampling_s = max(min(last_sampled_at - first_issued_at, times.weights_at - times.started_at), 1e-9)
    return {
        **(
            {
                "reward/mean": float(np.mean(np.concatenate(judged))),
                "reward/equal_groups_fraction": float(np.mean([reward.min() == reward.max() for reward in judged])),
            }
            if judged
            else {}
        ),
        **_rewards_by_task(groups),
        "verifier/left_out_fraction": 1 - sum(map(len, rewards)) / sum(len(group.verdicts.rewards) for group in groups),
        **{f"verifier/{outcome.name.lower()}": float(outcomes[outcome]) for outcome in Outcome},
        **{f"teacher/{teacher}_tokens": float(tokens) for teacher, tokens in tokens_by_teacher.items()},
        "rollout/response_tokens": float(lengths.sum()),
        "rollout/response_tokens_mean": float(lengths.mean()),
        "rollout/response_tokens_max": float(lengths.max()),
        "rollout/truncated_fraction": sum(group.summary.num_truncated for group in groups) / len(lengths),
        "rollout/repetitive_fraction": sum(group.summary.num_repetitive for group in groups) / len(lengths),
        "rollout/tokens_per_s": float(lengths.sum()) / sampling_s,
        "rollout/staleness_mean": sum(age * tokens for age, tokens in tokens_by_age.items())
        / max(1, tokens_by_age.total()),
        "rollout/staleness_max": float(max(tokens_by_age, default=0)),
        "rollout/dropped_groups": float(sum(group.is_dropped for group in groups)),
        "rollout/abandoned_groups": float(num_abandoned),
        "rollout/retried_groups": float(sum(group.attempts > 1 for group in groups)),
        **exposed_times(groups, times),
        **learner,
    }


def _rewards_by_task(groups: Sequence[GroupRecord]) -> dict[str, float]:
    """Return `reward/mean_TASK` of each task; empty if all groups are of one task."""
    rewards: dict[str, list[float]] = {}
    for group in groups:
        judged = group.verdicts.rewards[group.verdicts.is_judged]
        rewards.setdefault(group.task, []).extend(judged.tolist())
    if len(rewards) == 1:
        return {}
    return {f"reward/mean_{task}": float(np.mean(found)) for task, found in rewards.items() if found}


def trace_metrics(groups: Sequence[GroupRecord], times: StepTimes, learner: Mapping[str, float]) -> dict[str, float]:
    """Compute the metrics of a step whose groups were read from traces. Reading them replaces generation.

    The learner's gap to the sampler's log-probabilities is left out: the sampler was the teacher, so the gap is not
    engine noise.
    """
    lengths = np.concatenate([group.summary.response_lengths for group in groups])
    exposed = exposed_times(groups, times)
    return {
        "traces/response_tokens": float(lengths.sum()),
        "traces/response_tokens_mean": float(lengths.mean()),
        "traces/response_tokens_max": float(lengths.max()),
        "traces/tokens_per_s": float(lengths.sum()) / exposed["time/step_s"],
        **exposed,
        **{name: value for name, value in learner.items() if not name.startswith("learner/logprob_gap")},
    }


def exposed_times(groups: Sequence[GroupRecord], times: StepTimes) -> dict[str, float]:
    """Compute `time/*_s`, the time that each stage adds to the step. They add up to `time/step_s`.

    Generation counts until the last group was sampled. Scoring, learning and the weight update count only the time that
    is not hidden behind the stage before. Work from before the step started counts nothing. `time/teacher_s` is the
    part of the scoring time after the last verdict had arrived.
    """
    sampled_at = max(times.started_at, *(group.times.sampled_at for group in groups))
    verified_at = max(sampled_at, *(group.times.verified_at for group in groups))
    scored_at = max(verified_at, *(group.times.scored_at for group in groups))
    return {
        "time/step_s": times.weights_at - times.started_at,
        "time/generate_s": sampled_at - times.started_at,
        "time/score_s": scored_at - sampled_at,
        "time/teacher_s": scored_at - verified_at if any(group.teachers for group in groups) else 0.0,
        "time/learn_s": max(0.0, times.trained_at - scored_at),
        "time/weights_s": times.weights_at - times.trained_at,
    }
