"""Scored groups with random tokens and log-probabilities, for the tests of packing."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rlad.contracts import FinishReason, Outcome, RolloutGroup, ScoredGroup, TeacherScores, Verdicts

VOCABULARY, SUPPORT = 17, 3


def scored_group(
    uid: str,
    response_lengths: Sequence[int],
    *,
    prompt_tokens: int = 3,
    seed: int = 0,
    truncated: Sequence[int] = (),
    rewards: Sequence[float] | None = None,
    has_teacher: bool = True,
) -> ScoredGroup:
    """Return a group over `VOCABULARY` tokens with random log-probabilities in a range of 2 nats."""
    generator = np.random.default_rng(seed)
    size, num_tokens = len(response_lengths), sum(response_lengths)
    group = RolloutGroup(
        uid=uid,
        attempt=0,
        prompt_id=uid,
        task="test",
        answer="",
        temperature=1.0,
        prompt_ids=generator.integers(1, 17, prompt_tokens, dtype=np.int32),
        response_ids=generator.integers(1, 17, num_tokens, dtype=np.int32),
        response_offsets=np.cumsum([0, *response_lengths], dtype=np.int64),
        behaviour_logprobs=generator.uniform(-4, -2, num_tokens).astype(np.float32),
        policy_versions=np.zeros(num_tokens, dtype=np.int32),
        finish_reasons=np.array(
            [FinishReason.LENGTH if i in truncated else FinishReason.STOP for i in range(size)], dtype=np.uint8
        ),
    )
    rewards = generator.integers(0, 2, size).tolist() if rewards is None else rewards
    verdicts = Verdicts(
        uid=uid,
        attempt=0,
        rewards=np.array(rewards, dtype=np.float32),
        outcomes=np.full(size, Outcome.CORRECT, dtype=np.uint8),
        elapsed_s=np.zeros(size, dtype=np.float32),
    )
    logprobs = generator.uniform(-4, -2, num_tokens).astype(np.float32)
    likeliest = np.array(
        [generator.permutation(VOCABULARY)[: SUPPORT + 1] for _ in range(num_tokens)], dtype=np.int32
    ).reshape(-1, SUPPORT + 1)
    drawn = generator.normal(size=likeliest.shape)
    distribution = (drawn - np.log(np.exp(drawn).sum(axis=1, keepdims=True))).astype(np.float32)
    teacher = TeacherScores(
        uid=uid,
        attempt=0,
        teacher="teacher",
        logprobs=logprobs,
        support_size=SUPPORT,
        support_ids=likeliest[:, :SUPPORT].ravel(),
        support_logprobs=distribution[:, :SUPPORT].ravel(),
        tail_logprobs=distribution[:, SUPPORT].copy(),
    )
    reference = TeacherScores(
        uid=uid, attempt=0, teacher="reference", logprobs=generator.uniform(-4, -2, num_tokens).astype(np.float32)
    )
    return ScoredGroup(
        group=group,
        verdicts=verdicts,
        rewards=verdicts.rewards,
        teacher_scores=teacher if has_teacher else None,
        reference_scores=reference,
    )


def every_sequence(groups: dict[str, ScoredGroup]) -> list[tuple[str, int]]:
    return [(uid, index) for uid, scored in groups.items() for index in range(scored.group.num_responses)]
