"""Logged groups for tests of the sample log."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rlad.contracts import ScoredGroup
from rlad.samples.log import LoggedGroup, ResponseText
from rlad.testing.records import make_group, make_teacher_scores, make_verdicts


def logged_group(
    uid: str,
    rewards: Sequence[float],
    *,
    teacher: Sequence[float] | None = None,
    tokens_per_response: int = 2,
    is_dropped: bool = False,
) -> LoggedGroup:
    """Return a group whose responses are `aa`, `bb`, ..., one letter a token.

    Args:
        uid: Uid of the group.
        rewards: Reward of each response.
        teacher: Teacher's log-probability of every token of each response; the student's are all -1.
        tokens_per_response: Length of each response.
        is_dropped: Whether another group took its place.
    """
    group = make_group([[7] * tokens_per_response] * len(rewards), uid=uid, answer="42", policy_version=3)
    scores = None if teacher is None else make_teacher_scores(group, np.repeat(teacher, tokens_per_response).tolist())
    return LoggedGroup(
        scored=ScoredGroup(
            group=group,
            verdicts=make_verdicts(group, rewards),
            rewards=np.array(rewards, np.float32) - np.float32(0.5),
            teacher_scores=scores,
        ),
        prompt=f"question of {uid}",
        responses=[
            ResponseText(
                text=chr(ord("a") + index) * tokens_per_response, token_ends=list(range(1, tokens_per_response + 1))
            )
            for index in range(len(rewards))
        ],
        is_dropped=is_dropped,
        worker="rollout-0",
    )
