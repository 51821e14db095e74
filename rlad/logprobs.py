"""Log-probabilities of selected tokens, and entropies, without a [tokens, vocabulary] tensor in memory.

Shape letters: S positions of a packed row, H hidden size, V vocabulary, C positions of a chunk, K selected tokens of a
position.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from rlad.errors import ContractError

_HALF_TYPES = (torch.float16, torch.bfloat16)


class TokenStatistics(NamedTuple):
    """Statistics of the next-token distribution at each position, in nats.

    Attributes:
        logprobs: Log-probabilities of the targets, [S].
        support_logprobs: Log-probabilities of `support_ids`, [S, K]; None if not requested.
        entropies: Entropies of the whole distribution, [S]; None if not requested.
    """

    logprobs: Tensor
    support_logprobs: Tensor | None
    entropies: Tensor | None


def selected_logprobs(
    hidden: Tensor, weight: Tensor, target_ids: Tensor, *, temperature: float = 1.0, chunk_tokens: int = 1024
) -> Tensor:
    """Return `log softmax(hidden @ weight.T / temperature)[target]` at every position, [S].

    Arguments and errors are those of `token_statistics`.
    """
    return token_statistics(hidden, weight, target_ids, temperature=temperature, chunk_tokens=chunk_tokens).logprobs


def token_statistics(
    hidden: Tensor,
    weight: Tensor,
    target_ids: Tensor,
    *,
    support_ids: Tensor | None = None,
    with_entropy: bool = False,
    temperature: float = 1.0,
    chunk_tokens: int = 1024,
    vocabulary_size: int | None = None,
) -> TokenStatistics:
    """Compute log-probabilities and entropies of `softmax(hidden @ weight.T / temperature)`.

    Logits exist for `chunk_tokens` positions at a time, in the forward pass and again in the backward pass, which
    recomputes them. Memory beyond inputs, results and gradients is therefore C * V, independent of S. Half precision
    inputs are multiplied with float32 accumulation and float32 results. The gradient of `weight` is summed over chunks
    in float32.

    `weight` is kept by reference. A partitioned parameter (ZeRO-3) must be gathered during the forward pass and again
    during the backward pass.

    Args:
        hidden: Last hidden states, [S, H], in the dtype of `weight`.
        weight: Output embedding, [V, H].
        target_ids: Target tokens, int64 [S], each within [0, V).
        support_ids: Additional tokens at each position, int64 [S, K].
        with_entropy: True to compute entropies.
        temperature: Sampling temperature. Logits are divided by it.
        chunk_tokens: Positions per chunk, C.
        vocabulary_size: Number of token ids. Later rows of `weight` are padding, which is never sampled, and have
            probability 0; None means all of V.

    Returns:
        Statistics in float64 for float64 inputs, else in float32.

    Raises:
        ContractError: Shapes or dtypes do not match, or the temperature or chunk size is not positive.
    """
    _check(hidden, weight, target_ids, support_ids, temperature, chunk_tokens)
    ids = target_ids[:, None] if support_ids is None else torch.cat([target_ids[:, None], support_ids], dim=1)
    logprobs, entropies = _TokenStatistics.apply(
        hidden, weight, ids, with_entropy, temperature, chunk_tokens, vocabulary_size or len(weight)
    )
    return TokenStatistics(logprobs[:, 0], None if support_ids is None else logprobs[:, 1:], entropies)


def _check(
    hidden: Tensor,
    weight: Tensor,
    target_ids: Tensor,
    support_ids: Tensor | None,
    temperature: float,
    chunk_tokens: int,
) -> None:
    shapes = f"hidden {list(hidden.shape)}, weight {list(weight.shape)}, target_ids {list(target_ids.shape)}"
    if (
        hidden.ndim != 2
        or weight.ndim != 2
        or hidden.shape[1] != weight.shape[1]
        or target_ids.shape != hidden.shape[:1]
    ):
        raise ContractError(f"token_statistics: expected hidden [S, H], weight [V, H] and target_ids [S], got {shapes}")
    if hidden.dtype != weight.dtype or not hidden.is_floating_point() or target_ids.dtype != torch.int64:
        dtypes = f"{hidden.dtype}, {weight.dtype} and {target_ids.dtype}"
        raise ContractError(
            "token_statistics: hidden and weight must share a floating dtype and target_ids must be int64, "
            f"got {dtypes}"
        )
    if support_ids is not None and (
        support_ids.ndim != 2 or len(support_ids) != len(target_ids) or support_ids.dtype != torch.int64
    ):
        raise ContractError(
            f"token_statistics: expected support_ids int64 [{len(target_ids)}, K], "
            f"got {support_ids.dtype} {list(support_ids.shape)}"
        )
    if not temperature > 0 or chunk_tokens < 1:
        raise ContractError(
            f"token_statistics: temperature and chunk_tokens must be positive, got {temperature} and {chunk_tokens}"
        )


class _TokenStatistics(torch.autograd.Function):
    """Map hidden [S, H], weight [V, H] and ids [S, K] to log-probabilities [S, K] and entropies [S] or None."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        ids: Tensor,
        with_entropy: bool,
        temperature: float,
        chunk_tokens: int,
        vocabulary_size: int,
    ) -> tuple[Tensor, Tensor | None]:
        dtype = torch.float64 if hidden.dtype == torch.float64 else torch.float32
        logprobs = torch.empty(ids.shape, dtype=dtype, device=hidden.device)
        log_normalizers = torch.empty(hidden.shape[0], dtype=dtype, device=hidden.device)
        entropies = torch.empty_like(log_normalizers) if with_entropy else None
        for chunk in token_chunks(hidden.shape[0], chunk_tokens):
            logits = wide_product(hidden[chunk], weight[:vocabulary_size].t()).div_(temperature)
            chosen = logits.gather(1, ids[chunk])
            if entropies is None:
                # In-place logsumexp: `Tensor.logsumexp` would allocate a second tensor of the logits' size.
                peaks = logits.amax(dim=1, keepdim=True)
                log_normalizers[chunk] = logits.sub_(peaks).exp_().sum(dim=1).log_().add_(peaks[:, 0])
            else:
                log_normalizers[chunk] = logits.logsumexp(dim=1)
                entropies[chunk] = torch.special.entr(logits.sub_(log_normalizers[chunk, None]).exp_()).sum(dim=1)
            logprobs[chunk] = chosen - log_normalizers[chunk, None]
            del logits  # Free the memory before the next chunk's logits are allocated.
        # Save `weight` itself, not a view: a partitioned parameter is empty between the passes and gathered again, into
        # new memory, when the backward pass reads it.
        ctx.save_for_backward(hidden, weight, ids, log_normalizers, entropies)
        ctx.temperature, ctx.chunk_tokens, ctx.vocabulary_size = temperature, chunk_tokens, vocabulary_size
        return logprobs, entropies

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, grad_logprobs: Tensor, grad_entropies: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None, None, None, None, None, None]:
        """Return the gradients of `hidden` and `weight`.

        With p the softmax and H its entropy: d log p_i / d logits = (one_hot(i) - p) / temperature and
        d H / d logits = -p (log p + H) / temperature.
        """
        hidden, weight, ids, log_normalizers, entropies = ctx.saved_tensors
        needs_hidden, needs_weight = ctx.needs_input_grad[:2]
        grad_hidden = torch.empty_like(hidden) if needs_hidden else None
        grad_weight = torch.zeros_like(weight, dtype=log_normalizers.dtype) if needs_weight else None
        rows = slice(ctx.vocabulary_size)
        for chunk in token_chunks(hidden.shape[0], ctx.chunk_tokens):
            scale = grad_logprobs[chunk] / ctx.temperature
            grad_logits = (
                wide_product(hidden[chunk], weight[rows].t()).div_(ctx.temperature).sub_(log_normalizers[chunk, None])
            )
            factor = -scale.sum(dim=1, keepdim=True)
            if entropies is not None and grad_entropies is not None:
                factor = factor - (grad_logits + entropies[chunk, None]) * (
                    grad_entropies[chunk, None] / ctx.temperature
                )
            grad_logits.exp_().mul_(factor)
            grad_logits.scatter_add_(1, ids[chunk], scale)
            if grad_hidden is not None:
                grad_hidden[chunk] = wide_product(grad_logits.to(weight.dtype), weight[rows]).to(hidden.dtype)
            if grad_weight is not None:
                add_product(grad_weight[rows], grad_logits.to(hidden.dtype).t(), hidden[chunk])
            del grad_logits, factor
        return grad_hidden, None if grad_weight is None else grad_weight.to(weight.dtype), None, None, None, None, None


def token_chunks(size: int, chunk_tokens: int) -> Iterator[slice]:
    """Yield slices of at most `chunk_tokens` positions that cover `size` positions."""
    return (slice(start, min(start + chunk_tokens, size)) for start in range(0, size, chunk_tokens))


def wide_product(left: Tensor, right: Tensor) -> Tensor:
    """Return `left @ right`, in float32 for half precision inputs.

    Logits rounded to bfloat16 would be wrong by up to 0.06 nats at magnitude 16.
    """
    if left.dtype not in _HALF_TYPES:
        return left @ right
    if left.is_cuda:
        return torch.mm(left, right, out_dtype=torch.float32)
    return left.float() @ right.float()  # On the CPU, torch.mm has no half precision product with a float32 result.


def add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """Add `left @ right` to `total` in place, in the dtype of `total`."""
    if left.dtype == total.dtype:
        total.addmm_(left, right)
    else:
        total.add_(wide_product(left, right))
