"""Log-probabilities of selected tokens and of a model's K most likely tokens, in chunks of positions.

No [tokens, vocabulary] tensor exists on the device.

Shape letters: S positions, H hidden size, V vocabulary, K tokens of the support, C positions of a chunk.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from rlad.errors import ContractError
from rlad.logprobs import token_chunks, wide_product


class SupportLogprobs(NamedTuple):
    """Log-probabilities of targets and supports, on the CPU, float32, in nats.

    Attributes:
        selected: Log-probabilities of the targets, [S].
        support_ids: The K most likely tokens, most likely first, int32 [S, K]; in the order of their ids if K is V.
        support_logprobs: Log-probabilities of `support_ids`, [S, K].
        tail_logprobs: Log of the probability of all other tokens, [S]; -inf if K is V.
    """

    selected: Tensor
    support_ids: Tensor
    support_logprobs: Tensor
    tail_logprobs: Tensor


@torch.no_grad()
def selected_and_top_logprobs(
    hidden: Tensor,
    weight: Tensor,
    target_ids: Tensor,
    *,
    support_size: int,
    temperature: float = 1.0,
    chunk_tokens: int = 1024,
) -> SupportLogprobs:
    """Compute the targets' entries of `log softmax(hidden @ weight.T / temperature)`, the K largest, and the tail.

    Logits exist for C positions at a time, and the results of a chunk leave the device before the next chunk, so device
    memory is C * V. The tail is summed over the tokens outside the support, because `1 - support mass` cancels where
    nearly all mass is inside. Half precision is handled as in `selected_logprobs`.

    Args:
        hidden: Last hidden states, [S, H], in the dtype of `weight`.
        weight: Output embedding, [V, H].
        target_ids: Target tokens, int64 [S], each within [0, V).
        support_size: Support size K, within [1, V].
        temperature: Sampling temperature. Logits are divided by it.
        chunk_tokens: Positions per chunk, C.

    Raises:
        ContractError: The support is larger than the vocabulary, or the temperature or chunk size is not positive.
    """
    _check(len(weight), support_size, temperature, chunk_tokens)
    tokens, vocabulary = len(hidden), len(weight)
    kept = SupportLogprobs(
        selected=torch.empty(tokens),
        support_ids=torch.empty((tokens, support_size), dtype=torch.int32),
        support_logprobs=torch.empty((tokens, support_size)),
        tail_logprobs=torch.empty(tokens),
    )
    for chunk in token_chunks(tokens, chunk_tokens):
        logprobs = wide_product(hidden[chunk], weight.t()).div_(temperature).log_softmax(dim=1)
        kept.selected[chunk] = logprobs.gather(1, target_ids[chunk, None])[:, 0].to("cpu", torch.float32)
        if support_size == vocabulary:
            kept.support_ids[chunk] = torch.arange(vocabulary, dtype=torch.int32)
            kept.support_logprobs[chunk] = logprobs.to("cpu", torch.float32)
            # No token is outside the support, so the tail is -inf. Where the model returned NaN, the tail is NaN too.
            kept.tail_logprobs[chunk] = torch.where(logprobs.isnan().any(dim=1), torch.nan, -torch.inf).to(
                "cpu", torch.float32
            )
        else:
            top = logprobs.topk(support_size, dim=1)
            kept.support_ids[chunk] = top.indices.to("cpu", torch.int32)
            kept.support_logprobs[chunk] = top.values.to("cpu", torch.float32)
            kept.tail_logprobs[chunk] = (
                logprobs.scatter_(1, top.indices, -torch.inf).logsumexp(dim=1).to("cpu", torch.float32)
            )
    return kept


def _check(vocabulary: int, support_size: int, temperature: float, chunk_tokens: int) -> None:
    if not 1 <= support_size <= vocabulary:
        raise ContractError(
            f"selected_and_top_logprobs: support_size must be within 1 and the vocabulary size {vocabulary}, "
            f"got {support_size}"
        )
    if not temperature > 0 or chunk_tokens < 1:
        raise ContractError(
            "selected_and_top_logprobs: temperature and chunk_tokens must be positive, "
            f"got {temperature} and {chunk_tokens}"
        )
