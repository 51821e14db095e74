"""How token losses become one loss: the weight of each token."""

from __future__ import annotations

import torch
from torch import Tensor

from rlad.config.objectives import Aggregation


def token_weights(
    included: Tensor, is_valid: Tensor, *, aggregation: Aggregation, fixed_length: int | None, dtype: torch.dtype
) -> Tensor:
    """The weight of each token of a padded batch; 0 where it is not valid. `rlad.packing` gives packed rows the same.

    - `response_mean`: mean over responses of the mean over each one's valid tokens (arXiv:2602.22495, Eq. 1 and 5). Every response counts, one
      without a valid token too.
    - `token_mean`: mean over all included tokens (DAPO, arXiv:2503.14476). A token that is included but not valid counts, as 0: what is missing
      is known only after the normaliser is needed.
    - `fixed_length`: sum over tokens, divided by the number of responses and a constant length (Dr. GRPO, arXiv:2503.20783).

    Args:
        included: boolean [B, T], the tokens to train on.
        is_valid: boolean [B, T], those of them whose loss exists.
    """
    num_responses = is_valid.shape[0]
    weights = is_valid.to(dtype)
    if aggregation == "response_mean":
        return weights / (num_responses * is_valid.sum(dim=1, keepdim=True).clamp(min=1))
    if aggregation == "token_mean":
        return weights / included.sum().clamp(min=1)
    assert fixed_length is not None  # the settings require it
    return weights / max(1, num_responses * fixed_length)
