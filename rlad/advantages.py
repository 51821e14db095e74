"""From the rewards of a group to what its responses are trained with: advantages, and which of them the teacher is imitated on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from rlad.errors import ContractError

AdvantageEstimator = Literal["group_std", "group_mean_only", "rloo"]
ImitationMask = Literal["none", "response", "group"]

SOLVED = 0.5
"""A reward above this counts as a right answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OverlongPenalty:
    """Soft overlong punishment (DAPO, arXiv:2503.14476, Eq. 13).

    Attributes:
        max_tokens: budget of a response.
        buffer_tokens: the last so many of it are punished, linearly from 0 up to `penalty` at the budget.
        penalty: taken off the reward of a response that fills the budget.
    """

    max_tokens: int
    buffer_tokens: int
    penalty: float


def shaped_rewards(
    rewards: npt.ArrayLike, lengths: npt.ArrayLike, overlong: OverlongPenalty | None
) -> npt.NDArray[np.float32]:
    """The rewards that advantages are made of: the verifier's, less what a response's length costs it.

    Args:
        rewards: [G].
        lengths: [G], tokens.
    """
    values = np.asarray(rewards, dtype=np.float32)
    if overlong is None:
        return values
    excess = np.asarray(lengths, dtype=np.float64) - (overlong.max_tokens - overlong.buffer_tokens)
    return (values - overlong.penalty * np.clip(excess / overlong.buffer_tokens, 0, 1)).astype(np.float32)


def imitated_responses(rewards: npt.ArrayLike, mask: ImitationMask) -> npt.NDArray[np.bool_]:
    """Which responses have a distillation term (reward-guided masking, arXiv:2506.02208): all (`none`), those that are not right (`response`), or all
    of a group in which none is right, and else none (`group`).

    Args:
        rewards: [G], the verifier's.

    Returns:
        bool [G].
    """
    is_right = np.asarray(rewards) > SOLVED
    if mask == "none":
        return np.ones(is_right.shape, dtype=np.bool_)
    return ~is_right if mask == "response" else np.full(is_right.shape, not is_right.any())


def group_advantages(rewards: npt.ArrayLike, estimator: AdvantageEstimator = "group_std") -> npt.NDArray[np.float32]:
    """How much better each response is than its group.

    - `group_std`: `(r - mean(r)) / std(r)`, population standard deviation (the advantage of arXiv:2602.22495, Eq. 1). No constant is added to the
      deviation: a group's advantages have mean square 1 whatever the scale of its rewards.
    - `group_mean_only`: `r - mean(r)` (Dr. GRPO, arXiv:2503.20783).
    - `rloo`: r minus the mean of the other responses, `(r - mean(r)) G / (G - 1)` (arXiv:2402.14740).

    A group with equal rewards, or of one response, has nothing to tell apart: its advantages are exactly 0, never NaN.

    Args:
        rewards: [G], finite.

    Returns:
        float32 [G].

    Raises:
        ContractError: not one-dimensional, empty, or not finite.
    """
    values = np.asarray(rewards, dtype=np.float64)
    if values.ndim != 1 or values.size == 0 or not np.isfinite(values).all():
        raise ContractError(
            f"group_advantages: rewards must be one or more finite numbers in one dimension, got {rewards!r}"
        )
    # Compared, not computed: the rounded mean of equal rewards can differ from them, and the quotient would be of order 1.
    if values.min() == values.max():
        return np.zeros(values.size, dtype=np.float32)
    deviations = values - values.mean()
    if estimator != "group_std":
        factor = values.size / (values.size - 1) if estimator == "rloo" else 1.0
        plain: npt.NDArray[np.float32] = (deviations * factor).astype(np.float32)
        return plain
    # Divided by the largest first, so that squares of tiny or huge rewards neither vanish nor overflow.
    deviations /= np.abs(deviations).max()
    advantages: npt.NDArray[np.float32] = (deviations / np.sqrt(np.mean(deviations**2))).astype(np.float32)
    return advantages
