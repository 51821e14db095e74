"""The tokens of a batch as an objective sees them, and which of them count."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rlad.errors import ContractError


@dataclass(frozen=True, slots=True, kw_only=True)
class Extras:
    """What only some objectives and options need. Columns have the shape of `policy_logprobs`, [B, T] or [S]; with K more at the end where it says so.

    Attributes:
        sampler_logprobs: of the sampling engine, where `behaviour_logprobs` are the learner's own: for the correction of their mismatch.
        reference_logprobs: of the frozen reference policy.
        entropies: of the student's distribution at each position, with graph.
        is_imitated: boolean; False where a token's distillation term is left out.
        support_logprobs: [..., K], the student's log-probabilities of the teacher's K tokens, with graph.
        teacher_support_logprobs: [..., K], the teacher's.
        teacher_tail_logprobs: log of the teacher's mass outside its K tokens; -inf where they are the whole vocabulary.
        progress: share of the run's updates that are done, in [0, 1]: for coefficients that change.
        entropy_coefficient: in place of the configured one, where it is adaptive.
    """

    sampler_logprobs: Tensor | None = None
    reference_logprobs: Tensor | None = None
    entropies: Tensor | None = None
    is_imitated: Tensor | None = None
    support_logprobs: Tensor | None = None
    teacher_support_logprobs: Tensor | None = None
    teacher_tail_logprobs: Tensor | None = None
    progress: float = 0.0
    entropy_coefficient: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Tokens:
    """Tokens as an objective's elementwise function sees them: any shape, all of one, in float32 or float64; support columns have K more.

    Every column holds 0 where `is_valid` is false, so what stood there (padding, NaN, infinity) reaches neither loss nor gradient. Only
    `policy_logprobs`, `entropies` and `support_logprobs` carry a graph. A column that the objective does not need is None.
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
    progress: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Needs:
    """Which columns an objective looks at, beside policy, behaviour and advantages."""

    teacher: bool = False
    sampler: bool = False
    reference: bool = False
    entropy: bool = False
    support: bool = False
    imitated: bool = False
    who: str = "objective"


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
    """The tokens that count, and how many of the included ones lack a log-probability, by metric name.

    A token that lacks one that is needed (NaN or infinite) is not valid. Half precision is computed in float32, float64 stays float64.

    Raises:
        ContractError: shapes differ, or a needed column is missing.
    """
    require(policy.is_floating_point(), f"policy_logprobs must be floating point, got {policy.dtype}")
    shape, dtype = policy.shape, torch.float64 if policy.dtype == torch.float64 else torch.float32
    is_present = {"behaviour": _checked("behaviour_logprobs", behaviour, shape).isfinite()}
    for name, is_needed, column in (
        ("teacher", needs.teacher, teacher),
        ("sampler", needs.sampler, extras.sampler_logprobs),
        ("reference", needs.reference, extras.reference_logprobs),
    ):
        if is_needed:
            is_present[name] = _needed(needs, f"{name}_logprobs", column, shape).isfinite()
    student_support: Tensor | None = None
    if needs.support:
        student_support, theirs, tail = _support(needs, extras, shape)
        is_present["teacher"] = (
            is_present["teacher"] & theirs.isfinite().all(dim=-1) & ~tail.isnan() & (tail < torch.inf)
        )
    totals = {f"objective/{name}_missing_tokens": (included & ~present).sum() for name, present in is_present.items()}
    is_valid = included
    for present in is_present.values():
        is_valid = is_valid & present

    def constant(column: Tensor | None, is_needed: bool = True) -> Tensor | None:
        if column is None or not is_needed:
            return None
        return column.detach().to(dtype).where(is_valid if column.ndim == is_valid.ndim else is_valid[..., None], 0)

    policy_logprobs = upcast(policy, dtype).where(is_valid, 0)
    entropies = (
        upcast(_needed(needs, "entropies", extras.entropies, shape), dtype).where(is_valid, 0)
        if needs.entropy
        else None
    )
    imitated = _needed(needs, "is_imitated", extras.is_imitated, shape) & is_valid if needs.imitated else None
    behaviour_constant, advantages_constant = constant(behaviour), constant(advantages)
    assert behaviour_constant is not None
    assert advantages_constant is not None
    tail_logprobs = extras.teacher_tail_logprobs if needs.support else None
    tokens = Tokens(
        policy_logprobs=policy_logprobs,
        behaviour_logprobs=behaviour_constant,
        teacher_logprobs=constant(teacher, needs.teacher),
        advantages=advantages_constant,
        is_valid=is_valid,
        sampler_logprobs=constant(extras.sampler_logprobs, needs.sampler),
        reference_logprobs=constant(extras.reference_logprobs, needs.reference),
        entropies=entropies,
        is_imitated=imitated,
        support_logprobs=None
        if student_support is None
        else upcast(student_support, dtype).where(is_valid[..., None], 0),
        teacher_support_logprobs=constant(extras.teacher_support_logprobs, needs.support),
        teacher_tail_logprobs=constant(tail_logprobs),
        progress=extras.progress,
    )
    return tokens, totals


def upcast(column: Tensor, dtype: torch.dtype) -> Tensor:
    """`column` in `dtype`. A gradient too large for float16 comes back as its largest number: a ratio near the limit overflows it."""
    converted = column.to(dtype)
    if column.dtype == torch.float16 and converted.requires_grad:
        largest = torch.finfo(torch.float16).max
        converted.register_hook(lambda gradient: gradient.clamp(-largest, largest))
    return converted


def require(claim: bool, problem: str) -> None:
    if not claim:
        raise ContractError(f"objective: {problem}")


def require_shape(name: str, tensor: Tensor, shape: torch.Size) -> None:
    require(
        tensor.shape == shape, f"{name} must have shape {list(shape)} to fit policy_logprobs, got {list(tensor.shape)}"
    )


def _checked(name: str, column: Tensor, shape: torch.Size) -> Tensor:
    require_shape(name, column, shape)
    return column


def _needed(needs: Needs, name: str, column: Tensor | None, shape: torch.Size) -> Tensor:
    if column is None:
        raise ContractError(f"{needs.who} needs {name}, got None")
    return _checked(name, column, shape)


def _support(needs: Needs, extras: Extras, shape: torch.Size) -> tuple[Tensor, Tensor, Tensor]:
    ours, theirs, tail = extras.support_logprobs, extras.teacher_support_logprobs, extras.teacher_tail_logprobs
    if ours is None or theirs is None or tail is None:
        raise ContractError(
            f"{needs.who} needs support_logprobs, teacher_support_logprobs and teacher_tail_logprobs, got None among them"
        )
    require(
        ours.shape == theirs.shape and ours.shape[:-1] == shape,
        f"support columns must be {[*shape, 'K']}, got {ours.shape} and {theirs.shape}",
    )
    return ours, theirs, _checked("teacher_tail_logprobs", tail, shape)
