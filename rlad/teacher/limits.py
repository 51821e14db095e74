"""Limits of a scoring request. A teacher checks them before it allocates memory or computes anything."""

from __future__ import annotations

from rlad.contracts import RolloutGroup, TeacherSupport
from rlad.errors import ScoringRefusedError

MAX_RESPONSES = 4096
"""Maximum number of responses of a group. Each costs time besides that of its tokens."""

MAX_SCORES_BYTES = 8 << 30
"""Maximum size of the scores of one group, in bytes."""

_VALUE_BYTES = 4


def require_scorable(group: RolloutGroup, support: TeacherSupport, *, vocabulary: int, hidden_bytes: int = 0) -> None:
    """Refuse a group that a teacher cannot score.

    A token without an embedding fails its whole batch, and on a GPU the process, and with it groups of other clients.

    Args:
        group: Group to score.
        support: Tokens to score in addition to the sampled ones.
        vocabulary: Number of token ids of the teacher.
        hidden_bytes: Size of a hidden state of the teacher in bytes; 0 if it sends log-probabilities.

    Raises:
        ScoringRefusedError: The group has unknown token ids or too many responses, or the support is larger than the
            vocabulary or gives too many scores, or the teacher does not send what is requested.
    """
    if group.num_responses > MAX_RESPONSES:
        raise ScoringRefusedError(
            f"group {group.uid} has {group.num_responses} responses; a request may have {MAX_RESPONSES}: send them in "
            "several requests"
        )
    for ids in (group.prompt_ids, group.response_ids):
        if len(ids) and not 0 <= ids.min() <= ids.max() < vocabulary:
            raise ScoringRefusedError(
                f"group {group.uid} has token ids from {ids.min()} to {ids.max()}; the teacher's vocabulary has "
                f"ids from 0 to {vocabulary - 1}"
            )
    if (support == "hidden_states") != (hidden_bytes > 0):
        sends, asked = ("hidden states", support) if hidden_bytes else ("log-probabilities", "hidden states")
        raise ScoringRefusedError(f"the teacher sends {sends} (teacher.send); the request is for {asked}")
    if support == "hidden_states":
        _require_size(group, "with hidden states", group.num_tokens * (hidden_bytes + _VALUE_BYTES))
        return
    size = vocabulary if support == "full" else support or 0
    if size > vocabulary:
        raise ScoringRefusedError(
            f"the support must be `full` or a number of tokens from 1 to {vocabulary}, the teacher's vocabulary size; "
            f"got {support}"
        )
    _require_size(group, f"with a support of {size} tokens", scores_bytes(group.num_tokens, size))


def _require_size(group: RolloutGroup, kind: str, num_bytes: int) -> None:
    if num_bytes > MAX_SCORES_BYTES:
        raise ScoringRefusedError(
            f"the scores of group {group.uid} {kind} take {num_bytes >> 20} MiB; the limit is "
            f"{MAX_SCORES_BYTES >> 20} MiB: send fewer tokens, or ask for a smaller support"
        )


def scores_bytes(num_tokens: int, support_size: int) -> int:
    """Return the size of the scores of a group in bytes, with a support of K tokens at each of N positions."""
    values_per_token = 2 + 2 * support_size if support_size else 1
    return num_tokens * values_per_token * _VALUE_BYTES
