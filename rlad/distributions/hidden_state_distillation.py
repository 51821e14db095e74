"""Reverse KL to a teacher that is given by its last hidden states, in chunks of positions.

The teacher's distribution is `softmax(teacher_hidden @ teacher_weight.T / temperature)`, so its hidden states and its
output layer together are its log-probabilities of the whole vocabulary. No [positions, vocabulary] tensor exists.

Shape letters: S positions, H hidden size of the student, G hidden size of the teacher, V entries of an output layer, N
token ids, C positions of a chunk.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from rlad.errors import ContractError
from rlad.logprobs import add_product, token_chunks, wide_product


class DistillationStatistics(NamedTuple):
    """Statistics of student and teacher at each position, in nats.

    Attributes:
        logprobs: Student log-probabilities of the targets, [S], with graph.
        divergences: `KL(pi, pi_T)` over the whole vocabulary, [S], with graph.
        teacher_logprobs: Teacher log-probabilities of the targets, [S], without graph.
        entropies: Entropies of the student, [S], with graph; None if not requested.
    """

    logprobs: Tensor
    divergences: Tensor
    teacher_logprobs: Tensor
    entropies: Tensor | None


def distillation_statistics(
    hidden: Tensor,
    weight: Tensor,
    teacher_hidden: Tensor,
    teacher_weight: Tensor,
    target_ids: Tensor,
    *,
    with_entropy: bool = False,
    temperature: float = 1.0,
    chunk_tokens: int = 1024,
    vocabulary_size: int | None = None,
) -> DistillationStatistics:
    """Compute `KL(pi, pi_T)` over the vocabulary, and the log-probabilities of the targets.

    Logits of student and teacher exist for `chunk_tokens` positions at a time, in the forward pass and again in the
    backward pass, which recomputes them. Memory beyond inputs, results and gradients is therefore about 3 C V float32
    values, independent of S. Half precision is handled as in `rlad.logprobs.token_statistics`, and so is `weight`.

    Args:
        hidden: Last hidden states of the student, [S, H], in the dtype of `weight`.
        weight: Output layer of the student, [V, H].
        teacher_hidden: Last hidden states of the teacher, [S, G], in the dtype of `teacher_weight`.
        teacher_weight: Output layer of the teacher, [V, G]. Its number of entries may differ from the student's.
        target_ids: Target tokens, int64 [S], each within [0, N).
        with_entropy: True to compute the student's entropies.
        temperature: Sampling temperature. The logits of both models are divided by it.
        chunk_tokens: Positions per chunk, C.
        vocabulary_size: Number of token ids, N. Later rows of both output layers are padding, which has probability 0;
            None means all rows of `weight`.

    Returns:
        Statistics in float64 for float64 inputs, else in float32.

    Raises:
        ContractError: Shapes or dtypes do not match, the teacher's output layer has fewer than N rows, or the
            temperature or chunk size is not positive.
    """
    size = vocabulary_size or len(weight)
    _check(hidden, weight, teacher_hidden, teacher_weight, target_ids, size)
    if not temperature > 0 or chunk_tokens < 1:
        raise ContractError(
            "distillation_statistics: temperature and chunk_tokens must be positive, "
            f"got {temperature} and {chunk_tokens}"
        )
    return DistillationStatistics(
        *_Distillation.apply(
            hidden,
            weight,
            teacher_hidden.detach(),
            teacher_weight.detach(),
            target_ids,
            with_entropy,
            temperature,
            chunk_tokens,
            size,
        )
    )


def _check(
    hidden: Tensor, weight: Tensor, teacher_hidden: Tensor, teacher_weight: Tensor, target_ids: Tensor, size: int
) -> None:
    positions = target_ids.shape
    for name, states, layer in (("", hidden, weight), ("teacher_", teacher_hidden, teacher_weight)):
        if (
            states.ndim != 2
            or layer.ndim != 2
            or states.shape[1] != layer.shape[1]
            or states.shape[:1] != positions
            or states.dtype != layer.dtype
            or len(layer) < size
        ):
            raise ContractError(
                f"distillation_statistics: expected {name}hidden [{target_ids.numel()}, H] and {name}weight [V, H] of "
                f"one dtype, with V at least {size}; got {states.dtype} {list(states.shape)} and {layer.dtype} "
                f"{list(layer.shape)}"
            )
    if target_ids.dtype != torch.int64:
        raise ContractError(f"distillation_statistics: expected target_ids int64, got {target_ids.dtype}")


class _Distillation(torch.autograd.Function):
    """Map hidden states and output layers to log-probabilities, divergences, teacher log-probabilities and entropies.

    With z the student's logits divided by the temperature, p its softmax, q the teacher's, D the divergence and H the
    entropy:

        d log p_i / d z = one_hot(i) - p
        d D / d z = p (log p - log q - D)
        d H / d z = -p (log p + H)
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        teacher_hidden: Tensor,
        teacher_weight: Tensor,
        target_ids: Tensor,
        with_entropy: bool,
        temperature: float,
        chunk_tokens: int,
        size: int,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        dtype = torch.float64 if hidden.dtype == torch.float64 else torch.float32
        logprobs = torch.empty(len(hidden), dtype=dtype, device=hidden.device)
        divergences, teacher_logprobs = torch.empty_like(logprobs), torch.empty_like(logprobs)
        normalizers, teacher_normalizers = torch.empty_like(logprobs), torch.empty_like(logprobs)
        entropies = torch.empty_like(logprobs) if with_entropy else None
        for chunk in token_chunks(len(hidden), chunk_tokens):
            ids = target_ids[chunk, None]
            student = _logits(hidden[chunk], weight[:size], temperature, dtype)
            normalizers[chunk] = _log_normalizer(student)
            student.sub_(normalizers[chunk, None])
            teacher = _logits(teacher_hidden[chunk], teacher_weight[:size], temperature, dtype)
            teacher_normalizers[chunk] = _log_normalizer(teacher)
            teacher.sub_(teacher_normalizers[chunk, None])
            logprobs[chunk] = student.gather(1, ids)[:, 0]
            teacher_logprobs[chunk] = teacher.gather(1, ids)[:, 0]
            probabilities = student.exp()
            if entropies is not None:
                entropies[chunk] = torch.special.entr(probabilities).sum(dim=1)
            divergences[chunk] = probabilities.mul_(student.sub_(teacher)).sum(dim=1)
            del student, teacher, probabilities  # Free the memory before the next chunk's logits are allocated.
        # `weight` itself and no view of it, see `rlad.logprobs`.
        ctx.save_for_backward(
            hidden,
            weight,
            teacher_hidden,
            teacher_weight,
            target_ids,
            normalizers,
            teacher_normalizers,
            divergences,
            entropies,
        )
        ctx.temperature, ctx.chunk_tokens, ctx.size = temperature, chunk_tokens, size
        ctx.mark_non_differentiable(teacher_logprobs)
        return logprobs, divergences, teacher_logprobs, entropies

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, grad_logprobs: Tensor, grad_divergences: Tensor, _: Tensor, grad_entropies: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        (
            hidden,
            weight,
            teacher_hidden,
            teacher_weight,
            target_ids,
            normalizers,
            teacher_normalizers,
            divergences,
            entropies,
        ) = ctx.saved_tensors
        needs_hidden, needs_weight = ctx.needs_input_grad[:2]
        grad_hidden = torch.empty_like(hidden) if needs_hidden else None
        grad_weight = torch.zeros_like(weight, dtype=normalizers.dtype) if needs_weight else None
        rows, temperature = slice(ctx.size), ctx.temperature
        for chunk in token_chunks(len(hidden), ctx.chunk_tokens):
            student = _logits(hidden[chunk], weight[rows], temperature, normalizers.dtype)
            student.sub_(normalizers[chunk, None])
            factor = _logits(teacher_hidden[chunk], teacher_weight[rows], temperature, normalizers.dtype)
            factor.sub_(teacher_normalizers[chunk, None])
            torch.sub(student, factor, out=factor)
            factor.sub_(divergences[chunk, None]).mul_(grad_divergences[chunk, None])
            factor.sub_(grad_logprobs[chunk, None])
            if entropies is not None and grad_entropies is not None:
                factor.sub_((student + entropies[chunk, None]).mul_(grad_entropies[chunk, None]))
            grad_logits = factor.mul_(student.exp_())
            grad_logits.scatter_add_(1, target_ids[chunk, None], grad_logprobs[chunk, None])
            grad_logits.div_(temperature)
            del student, factor
            if grad_hidden is not None:
                grad_hidden[chunk] = wide_product(grad_logits.to(weight.dtype), weight[rows]).to(hidden.dtype)
            if grad_weight is not None:
                add_product(grad_weight[rows], grad_logits.to(hidden.dtype).t(), hidden[chunk])
            del grad_logits
        return grad_hidden, None if grad_weight is None else grad_weight.to(weight.dtype), *[None] * 7


def _logits(hidden: Tensor, weight: Tensor, temperature: float, dtype: torch.dtype) -> Tensor:
    return wide_product(hidden, weight.t()).to(dtype).div_(temperature)


def _log_normalizer(logits: Tensor) -> Tensor:
    """Return `logits.logsumexp(dim=1)` with one temporary tensor of the logits' size."""
    peaks = logits.amax(dim=1, keepdim=True)
    return (logits - peaks).exp_().sum(dim=1).log_().add_(peaks[:, 0])
