"""Advantages of a group of responses, reward shaping, and the mask of the distillation term."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from rlad.errors import ContractError

AdvantageEstimator = Literal["group_std", "group_mean_only", "rloo"]
ImitationMask = Literal["none", "response", "group"]

SOLVED = 0.5
"""Threshold of the imitation mask: a response is correct if its reward is above this value."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OverlongPenalty:
    """Soft overlong punishment (DAPO, arXiv:2503.14476, Eq. 13).

    Attributes:
        max_tokens: Token budget of a response.
        buffer_tokens: Size of the interval before the budget, in tokens. The penalty grows linearly within it.
        penalty: Reward subtracted from a response that uses the whole budget.
    """

    max_tokens: int
    buffer_tokens: int
    penalty: float


def shaped_rewards(
    rewards: npt.ArrayLike, lengths: npt.ArrayLike, overlong: OverlongPenalty | None
) -> npt.NDArray[np.float32]:
    """Return the rewards that advantages are computed from: the verifier's rewards minus the overlong penalty.

    Args:
        rewards: Rewards of the verifier, [G].
        lengths: Response lengths in tokens, [G].
        overlong: Penalty on long responses; None for no penalty.

    Returns:
        float32 [G].
    """
    values = np.asarray(rewards, dtype=np.float32)
    if overlong is None:
        return values
    excess = np.asarray(lengths, dtype=np.float64) - (overlong.max_tokens - overlong.buffer_tokens)
    return (values - overlong.penalty * np.clip(excess / overlong.buffer_tokens, 0, 1)).astype(np.float32)


def imitated_responses(rewards: npt.ArrayLike, mask: ImitationMask) -> npt.NDArray[np.bool_]:
    """Return which responses have a distillation term (reward-guided masking, arXiv:2506.02208).

    Args:
        rewards: Rewards of the verifier, [G].
        mask: `none` masks nothing, so all responses have the term. With `response`, only incorrect responses have it.
            With `group`, all responses of a group without a correct response have it, and no response of other groups.

    Returns:
        bool [G].
    """
    is_right = np.asarray(rewards) > SOLVED
    if mask == "none":
        return np.ones(is_right.shape, dtype=np.bool_)
    return ~is_right if mask == "response" else np.full(is_right.shape, not is_right.any())


def group_advantages(
    rewards: npt.ArrayLike, estimator: AdvantageEstimator = "group_std", *, is_judged: npt.ArrayLike | None = None
) -> npt.NDArray[np.float32]:
    """Return the advantage of each response over its group.

    - `group_std`: `(r - mean(r)) / std(r)` with the population standard deviation (the advantage in
      arXiv:2602.22495, Eq. 1). No constant is added to the deviation, so the advantages of a group have mean square 1
      at any scale of the rewards.
    - `group_mean_only`: `r - mean(r)` (Dr. GRPO, arXiv:2503.20783).
    - `rloo`: `r` minus the mean of the other responses, which is `(r - mean(r)) G / (G - 1)` (arXiv:2402.14740).

    A group with equal rewards, or with one response, has advantages of exactly 0, never NaN.

    Responses that the verifier did not judge take no part: mean, deviation and G are those of the others, and their own
    advantage is 0.

    Args:
        rewards: Finite rewards, [G].
        estimator: One of the estimators above.
        is_judged: Which responses the verifier judged, bool [G]; None for all.

    Returns:
        float32 [G].

    Raises:
        ContractError: `rewards` is not one-dimensional, is empty, or holds a non-finite value, or `is_judged` has
            another shape.
    """
    values = np.asarray(rewards, dtype=np.float64)
    if values.ndim != 1 or values.size == 0 or not np.isfinite(values).all():
        raise ContractError(
            f"group_advantages: expected a one-dimensional, non-empty array of finite rewards; got {rewards!r}"
        )
    if is_judged is not None:
        judged = np.asarray(is_judged, dtype=np.bool_)
        if judged.shape != values.shape:
            raise ContractError(
                f"group_advantages: expected is_judged for {values.size} rewards; got shape {judged.shape}"
            )
        spread = np.zeros(values.size, dtype=np.float32)
        if judged.any():
            spread[judged] = group_advantages(values[judged], estimator)
        return spread
    # Test for equality explicitly: the rounded mean of equal rewards can differ from them, and dividing by the equally
    # tiny deviation would give advantages of order 1.
    if values.min() == values.max():
        return np.zeros(values.size, dtype=np.float32)
    deviations = values - values.mean()
    if estimator != "group_std":
        factor = values.size / (values.size - 1) if estimator == "rloo" else 1.0
        plain: npt.NDArray[np.float32] = (deviations * factor).astype(np.float32)
        return plain
    # Scale by the largest deviation first, so that squares of tiny or huge rewards neither underflow nor overflow.
    deviations /= np.abs(deviations).max()
    advantages: npt.NDArray[np.float32] = (deviations / np.sqrt(np.mean(deviations**2))).astype(np.float32)
    return advantages
