"""Builders of the records that move between the pools, from plain Python lists.

Shape letters: G responses of a group, N tokens of all its responses together.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

import numpy as np

from rlad.contracts import Array, FinishReason, Outcome, RolloutGroup, ScoredGroup, TeacherScores, Verdicts


def make_group(
    responses: Sequence[Sequence[int]],
    *,
    prompt: Sequence[int] = (1, 2, 3),
    uid: str = "test:0:0",
    attempt: int = 0,
    task: str = "test",
    answer: str = "",
    temperature: float = 1.0,
    behaviour_logprobs: float | Sequence[float] = -1.0,
    policy_version: int = 0,
    truncated: Sequence[int] = (),
) -> RolloutGroup:
    """Return a group of sampled responses.

    Args:
        responses: token ids of each response; a response may be empty.
        prompt: token ids of the prompt.
        uid: name of the group; also the id of its prompt record.
        attempt: number of the attempt.
        task: name of the verifier.
        answer: expected answer of the prompt record.
        temperature: sampling temperature.
        behaviour_logprobs: log-probability in nats, one for all tokens or one for each of the N tokens.
        policy_version: version of the weights that sampled all tokens.
        truncated: indices of the responses that ended at the token budget.

    Raises:
        ContractError: the arguments contradict each other.
    """
    num_tokens = sum(map(len, responses))
    reasons = [FinishReason.LENGTH if index in truncated else FinishReason.STOP for index in range(len(responses))]
    return RolloutGroup(
        uid=uid,
        attempt=attempt,
        prompt_id=uid,
        task=task,
        answer=answer,
        temperature=temperature,
        prompt_ids=np.array(prompt, np.int32),
        response_ids=np.array(list(chain.from_iterable(responses)), np.int32),
        response_offsets=np.cumsum([0, *map(len, responses)], dtype=np.int64),
        behaviour_logprobs=_column(behaviour_logprobs, num_tokens),
        policy_versions=np.full(num_tokens, policy_version, np.int32),
        finish_reasons=np.array(reasons, np.uint8),
    )


def make_verdicts(
    group: RolloutGroup, rewards: float | Sequence[float] = 1.0, *, outcomes: Sequence[Outcome] | None = None
) -> Verdicts:
    """Return the verdicts on a group.

    Args:
        group: group that was verified.
        rewards: one reward for all responses, or one for each of the G responses.
        outcomes: outcome of each response; by default `CORRECT` where the reward is positive, else `WRONG`.
    """
    values = _column(rewards, group.num_responses)
    if outcomes is None:
        outcomes = [Outcome.CORRECT if reward > 0 else Outcome.WRONG for reward in values]
    return Verdicts(
        uid=group.uid,
        attempt=group.attempt,
        rewards=values,
        outcomes=np.array(outcomes, np.uint8),
        elapsed_s=np.zeros(group.num_responses, np.float32),
    )


def make_teacher_scores(
    group: RolloutGroup, logprobs: float | Sequence[float] = -1.0, *, teacher: str = "test-teacher"
) -> TeacherScores:
    """Return a teacher's scores of the sampled tokens, without a support.

    Args:
        group: group that was scored.
        logprobs: log-probability in nats, one for all tokens or one for each of the N tokens.
        teacher: fingerprint of the teacher.
    """
    return TeacherScores(
        uid=group.uid, attempt=group.attempt, teacher=teacher, logprobs=_column(logprobs, group.num_tokens)
    )


def make_scored_group(
    responses: Sequence[Sequence[int]],
    *,
    rewards: float | Sequence[float] = 1.0,
    teacher_logprobs: float | Sequence[float] | None = -1.0,
    uid: str = "test:0:0",
) -> ScoredGroup:
    """Return a group with verdicts and teacher scores, ready for `rlad.packing`.

    Args:
        responses: token ids of each response.
        rewards: one reward for all responses, or one for each of the G responses; shaped rewards are the same.
        teacher_logprobs: log-probability in nats, one or N; None for a group without teacher scores.
        uid: name of the group.
    """
    group = make_group(responses, uid=uid)
    verdicts = make_verdicts(group, rewards)
    return ScoredGroup(
        group=group,
        verdicts=verdicts,
        rewards=verdicts.rewards,
        teacher_scores=None if teacher_logprobs is None else make_teacher_scores(group, teacher_logprobs),
    )


def _column(values: float | Sequence[float], length: int) -> Array:
    """Return float32 [length]: a single value repeated, or the values as given."""
    return np.full(length, values, np.float32) if np.isscalar(values) else np.array(values, np.float32)
