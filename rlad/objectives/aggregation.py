"""Token weights: how token losses are aggregated into one loss."""

from __future__ import annotations

import torch
from torch import Tensor

from rlad.config.objectives import Aggregation


def token_weights(
    included: Tensor, is_valid: Tensor, *, aggregation: Aggregation, fixed_length: int | None, dtype: torch.dtype
) -> Tensor:
    """Return the weight of each token of a padded batch, 0 for invalid tokens.

    `rlad.packing` computes the same weights for packed rows.

    - `response_mean`: mean over responses of the mean over the valid tokens of each (arXiv:2602.22495, Eq. 1 and 4).
      All B responses count, including those without a valid token.
    - `token_mean`: mean over all included tokens (DAPO, arXiv:2503.14476). An included but invalid token counts as 0,
      because the denominator is needed before the missing log-probabilities are known.
    - `fixed_length`: sum over tokens, divided by the number of responses and a constant length (Dr. GRPO,
      arXiv:2503.20783).

    Args:
        included: Tokens to train on, bool [B, T].
        is_valid: Included tokens whose loss exists, bool [B, T].
        aggregation: One of the aggregations above.
        fixed_length: Constant length of `fixed_length`, in tokens; unused by the others.
        dtype: Floating dtype of the weights.

    Returns:
        Weights, [B, T].
    """
    num_responses = is_valid.shape[0]
    weights = is_valid.to(dtype)
    if aggregation == "response_mean":
        return weights / (num_responses * is_valid.sum(dim=1, keepdim=True).clamp(min=1))
    if aggregation == "token_mean":
        return weights / included.sum().clamp(min=1)
    assert fixed_length is not None  # ObjectiveSettings requires it.
    return weights / max(1, num_responses * fixed_length)
