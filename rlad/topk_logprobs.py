"""A model's log-probabilities of chosen tokens and of its own likeliest ones, without a [tokens, vocabulary] tensor on the device.

Shape letters: S tokens, H hidden size, V vocabulary, K tokens of the support, C tokens of a chunk.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from rlad.errors import ContractError
from rlad.logprobs import token_chunks, wide_product


class SupportLogprobs(NamedTuple):
    """On the CPU; all log-probabilities float32, in nats.

    Attributes:
        selected: [S], of the chosen tokens.
        support_ids: int32 [S, K], the K likeliest tokens, likeliest first; in the order of their ids where K is V.
        support_logprobs: [S, K], theirs.
        tail_logprobs: [S], log of the probability of all other tokens; -inf where K is V.
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
    """Of `log softmax(hidden @ weight.T / temperature)`, the targets' entries, the K largest, and the mass of the rest.

    Logits exist for C tokens at a time, and what is kept of a chunk leaves the device before the next one: memory there is C * V. The tail is summed over
    the tokens outside the support; 1 minus the mass inside cancels where nearly all of it is there. Half precision as in `selected_logprobs`.

    Args:
        hidden: [S, H], the last hidden states, in the dtype of `weight`.
        weight: [V, H], the output embedding.
        target_ids: int64 [S], each within [0, V).
        support_size: K, within [1, V].
        temperature: the sampling temperature; logits are divided by it.
        chunk_tokens: C.

    Raises:
        ContractError: a support larger than the vocabulary, a temperature or chunk size that is not positive.
    """
    vocabulary = len(weight)
    if not 1 <= support_size <= vocabulary:
        raise ContractError(
            f"selected_and_top_logprobs: the support must have 1 to {vocabulary} tokens, the vocabulary's size, got {support_size}"
        )
    if not temperature > 0 or chunk_tokens < 1:
        raise ContractError(
            f"selected_and_top_logprobs: temperature and chunk_tokens must be positive, got {temperature} and {chunk_tokens}"
        )
    tokens = len(hidden)
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
            # Nothing is outside; but where the model gave no number there is none either.
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
