"""How token losses become one loss: the weight of each token."""

from __future__ import annotations

import torch
from torch import Tensor


def response_mean_weights(is_valid: Tensor, dtype: torch.dtype) -> Tensor:
    """Weights of the mean over responses of the mean over each one's tokens (arXiv:2602.22495, Eq. 1 and 5).

    A valid token weighs 1 / (B * valid tokens of its response), any other 0. B counts every response, one without a valid token too.

    Args:
        is_valid: boolean [B, T].

    Returns:
        [B, T] in `dtype`.
    """
    num_responses = is_valid.shape[0]
    num_tokens = is_valid.sum(dim=1, keepdim=True).clamp(min=1)
    return is_valid.to(dtype) / (num_responses * num_tokens)
