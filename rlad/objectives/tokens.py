"""Token columns of an objective, and the selection of valid tokens.

Shape letters: B responses, T tokens, S positions of a packed row, K tokens of the teacher's support.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rlad.errors import ContractError


@dataclass(frozen=True, slots=True, kw_only=True)
class Extras:
    """Columns and values that only some objectives and options need.

    Columns have the shape of `policy_logprobs`, [B, T] or [S]; support columns have an additional last dimension K.

    Attributes:
        sampler_logprobs: Log-probabilities of the sampling engine, for the correction of the mismatch if
            `behaviour_logprobs` are the learner's own.
        reference_logprobs: Log-probabilities of the reference policy.
        entropies: Entropies of the student's distribution in nats, with graph.
        is_imitated: True for tokens with a distillation term, bool.
        support_logprobs: Student log-probabilities of the teacher's K tokens, [..., K], with graph.
        teacher_support_logprobs: Teacher log-probabilities of its K tokens, [..., K].
        teacher_tail_logprobs: Log of the teacher's mass outside its K tokens; -inf if they are the whole vocabulary.
        teacher_divergences: KL(pi, pi_T) over the whole vocabulary in nats, with graph. Replaces the support columns
            where the teacher sends hidden states.
        progress: Fraction of the run's updates that are done, in [0, 1], for coefficients that change.
        entropy_coefficient: Adaptive entropy coefficient that replaces the configured one; None keeps that.
    """

    sampler_logprobs: Tensor | None = None
    reference_logprobs: Tensor | None = None
    entropies: Tensor | None = None
    is_imitated: Tensor | None = None
    support_logprobs: Tensor | None = None
    teacher_support_logprobs: Tensor | None = None
    teacher_tail_logprobs: Tensor | None = None
    teacher_divergences: Tensor | None = None
    progress: float = 0.0
    entropy_coefficient: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Tokens:
    """Input of an objective's elementwise loss.

    All columns have one shape, in float32 or float64; support columns have an additional last dimension K. Every column
    holds 0 where `is_valid` is False, so padding, NaN and infinity reach neither loss nor gradient. Only
    `policy_logprobs`, `entropies`, `support_logprobs` and `teacher_divergences` carry a graph. A column that the
    objective does not need is None. See `Extras` for the optional columns.
    """

    policy_logprobs: Tensor
    behaviour_logprobs: Tensor
    teacher_logprobs: Tensor | None
    advantages: Tensor
    is_valid: Tensor
    sampler_logprobs: Tensor | None = None
    reference_logprobs: Tensor | None = None
    entropies: Tensor | None = None
    is_imitated: Tensor | None = None
    support_logprobs: Tensor | None = None
    teacher_support_logprobs: Tensor | None = None
    teacher_tail_logprobs: Tensor | None = None
    teacher_divergences: Tensor | None = None
    progress: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Needs:
    """Columns that an objective needs besides policy, behaviour and advantages.

    Attributes:
        support: Teacher scores beyond those of the sampled tokens: support columns, or divergences in their place.
        owner: Name of the objective in error messages.
    """

    teacher: bool = False
    sampler: bool = False
    reference: bool = False
    entropy: bool = False
    support: bool = False
    imitated: bool = False
    owner: str = "objective"


def select_tokens(
    needs: Needs,
    *,
    policy: Tensor,
    behaviour: Tensor,
    teacher: Tensor | None,
    advantages: Tensor,
    included: Tensor,
    extras: Extras,
) -> tuple[Tokens, dict[str, Tensor]]:
    """Select the valid tokens, and count the included tokens without a log-probability, by metric name.

    A token is invalid if a needed log-probability is NaN or infinite. Half precision is computed in float32; float64
    stays float64.

    Args:
        needs: Columns that the objective needs.
        policy: Student log-probabilities, [B, T] or [S], with graph.
        behaviour: Behaviour log-probabilities, in the same shape.
        teacher: Teacher log-probabilities, in the same shape; None without a teacher.
        advantages: Advantages, in the same shape.
        included: Tokens to train on, bool, in the same shape.
        extras: Optional columns.

    Raises:
        ContractError: Shapes differ, or a needed column is missing.
    """
    require(policy.is_floating_point(), f"policy_logprobs must be floating point, got {policy.dtype}")
    is_present = _presence(needs, behaviour=behaviour, teacher=teacher, extras=extras, shape=policy.shape)
    totals = {f"objective/{name}_missing_tokens": (included & ~present).sum() for name, present in is_present.items()}
    is_valid = included
    for present in is_present.values():
        is_valid = is_valid & present
    tokens = _masked_tokens(
        needs,
        policy=policy,
        behaviour=behaviour,
        teacher=teacher,
        advantages=advantages,
        is_valid=is_valid,
        extras=extras,
    )
    return tokens, totals


def _presence(
    needs: Needs, *, behaviour: Tensor, teacher: Tensor | None, extras: Extras, shape: torch.Size
) -> dict[str, Tensor]:
    """Return where each needed log-probability is finite, bool [B, T] or [S], by name of the model.

    Raises:
        ContractError: A shape differs from `shape`, or a needed column is missing.
    """
    is_present = {"behaviour": _checked("behaviour_logprobs", behaviour, shape).isfinite()}
    for name, is_needed, column in (
        ("teacher", needs.teacher, teacher),
        ("sampler", needs.sampler, extras.sampler_logprobs),
        ("reference", needs.reference, extras.reference_logprobs),
    ):
        if is_needed:
            is_present[name] = _needed(needs, f"{name}_logprobs", column, shape).isfinite()
    if needs.support and extras.teacher_divergences is not None:
        divergences = _checked("teacher_divergences", extras.teacher_divergences, shape)
        is_present["teacher"] = is_present["teacher"] & divergences.isfinite()
    elif needs.support:
        support, tail = _teacher_support(needs, extras, shape)
        is_present["teacher"] = (
            is_present["teacher"] & support.isfinite().all(dim=-1) & ~tail.isnan() & (tail < torch.inf)
        )
    return is_present


def _masked_tokens(
    needs: Needs,
    *,
    policy: Tensor,
    behaviour: Tensor,
    teacher: Tensor | None,
    advantages: Tensor,
    is_valid: Tensor,
    extras: Extras,
) -> Tokens:
    """Return the needed columns in the dtype of the computation, with 0 for invalid tokens.

    Raises:
        ContractError: A shape differs, or a needed column is missing.
    """
    shape, dtype = policy.shape, torch.float64 if policy.dtype == torch.float64 else torch.float32

    def masked(column: Tensor) -> Tensor:
        return column.where(is_valid if column.ndim == is_valid.ndim else is_valid[..., None], 0)

    def constant(column: Tensor | None, is_needed: bool) -> Tensor | None:
        return None if column is None or not is_needed else masked(column.detach().to(dtype))

    entropies = _needed(needs, "entropies", extras.entropies, shape) if needs.entropy else None
    is_imitated = _needed(needs, "is_imitated", extras.is_imitated, shape) & is_valid if needs.imitated else None
    divergences = extras.teacher_divergences if needs.support else None
    support = extras.support_logprobs if needs.support and divergences is None else None
    return Tokens(
        policy_logprobs=masked(upcast(policy, dtype)),
        behaviour_logprobs=masked(behaviour.detach().to(dtype)),
        teacher_logprobs=constant(teacher, needs.teacher),
        advantages=masked(advantages.detach().to(dtype)),
        is_valid=is_valid,
        sampler_logprobs=constant(extras.sampler_logprobs, needs.sampler),
        reference_logprobs=constant(extras.reference_logprobs, needs.reference),
        entropies=None if entropies is None else masked(upcast(entropies, dtype)),
        is_imitated=is_imitated,
        support_logprobs=None if support is None else masked(upcast(support, dtype)),
        teacher_support_logprobs=constant(extras.teacher_support_logprobs, needs.support),
        teacher_tail_logprobs=constant(extras.teacher_tail_logprobs, needs.support),
        teacher_divergences=None if divergences is None else masked(upcast(divergences, dtype)),
        progress=extras.progress,
    )


def upcast(column: Tensor, dtype: torch.dtype) -> Tensor:
    """Return `column` in `dtype`.

    For float16 inputs, gradients are clamped to the largest float16 number, which a ratio near the limit exceeds.
    """
    converted = column.to(dtype)
    if column.dtype == torch.float16 and converted.requires_grad:
        largest = torch.finfo(torch.float16).max
        converted.register_hook(lambda gradient: gradient.clamp(-largest, largest))
    return converted


def require(condition: bool, problem: str) -> None:
    """Raise ContractError with `problem` unless `condition` holds."""
    if not condition:
        raise ContractError(f"objective: {problem}")


def require_shape(name: str, tensor: Tensor, shape: torch.Size) -> None:
    """Raise ContractError unless `tensor` has the shape."""
    require(
        tensor.shape == shape,
        f"{name} must have shape {list(shape)} to match policy_logprobs, got {list(tensor.shape)}",
    )


def _checked(name: str, column: Tensor, shape: torch.Size) -> Tensor:
    require_shape(name, column, shape)
    return column


def _needed(needs: Needs, name: str, column: Tensor | None, shape: torch.Size) -> Tensor:
    if column is None:
        raise ContractError(f"{needs.owner} needs {name}, got None")
    return _checked(name, column, shape)


def _teacher_support(needs: Needs, extras: Extras, shape: torch.Size) -> tuple[Tensor, Tensor]:
    """Return the teacher's support log-probabilities and tail, after checking all three support columns."""
    columns = {
        "support_logprobs": extras.support_logprobs,
        "teacher_support_logprobs": extras.teacher_support_logprobs,
        "teacher_tail_logprobs": extras.teacher_tail_logprobs,
    }
    student, teacher, tail = columns.values()
    if student is None or teacher is None or tail is None:
        missing = [name for name, column in columns.items() if column is None]
        raise ContractError(f"{needs.owner} needs {', '.join(columns)}; got None for {', '.join(missing)}")
    require(
        student.shape == teacher.shape and student.shape[:-1] == shape,
        f"support columns must have shape {[*shape, 'K']}, got {list(student.shape)} and {list(teacher.shape)}",
    )
    return teacher, _checked("teacher_tail_logprobs", tail, shape)
