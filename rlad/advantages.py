"""How much better a response is than the others of its group."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from rlad.errors import ContractError


def group_advantages(rewards: npt.ArrayLike) -> npt.NDArray[np.float32]:
    """`(r - mean(r)) / std(r)` over a group, population standard deviation (the advantage of arXiv:2602.22495, Eq. 1).

    No constant is added to the deviation: a group's advantages have mean square 1 whatever the scale of its rewards. A group with equal rewards
    has nothing to tell apart: its advantages are exactly 0, never NaN.

    Args:
        rewards: [G], finite.

    Returns:
        float32 [G].

    Raises:
        ContractError: not one-dimensional, empty, or not finite.
    """
    values = np.asarray(rewards, dtype=np.float64)
    if values.ndim != 1 or values.size == 0 or not np.isfinite(values).all():
        raise ContractError(f"group_advantages: rewards must be one or more finite numbers in one dimension, got {rewards!r}")
    # Compared, not computed: the rounded mean of equal rewards can differ from them, and the quotient would be of order 1.
    if values.min() == values.max():
        return np.zeros(values.size, dtype=np.float32)
    deviations = values - values.mean()
    # Divided by the largest first, so that squares of tiny or huge rewards neither vanish nor overflow.
    deviations /= np.abs(deviations).max()
    advantages: npt.NDArray[np.float32] = (deviations / np.sqrt(np.mean(deviations**2))).astype(np.float32)
    return advantages
