"""Slow reference of the clipped objectives, and the ragged batches that the tests use.

Computes losses and gradients one token at a time in Python floats, from the paper's formulas. Shares no code with rlad.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from rlad.objectives import Extras

Rows = Sequence[Sequence[float]]

SUPPORT = 3
"""Tokens of the teacher's support in ragged batches."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    alpha: float = 0.5
    clamp: float = 1.0
    straight_through: bool = False
    eps_low: float = 0.20
    eps_high: float = 0.28


@dataclass(frozen=True, slots=True, kw_only=True)
class Padded:
    """Padded batch in float64: B responses, T tokens."""

    policy: Tensor
    behaviour: Tensor
    teacher: Tensor
    advantages: Tensor
    mask: Tensor
    extras: Extras = field(default_factory=Extras)

    def arguments(
        self, *, policy: Tensor | None = None, with_teacher: bool = True
    ) -> dict[str, Tensor | Extras | None]:
        return {
            "policy_logprobs": self.policy if policy is None else policy,
            "behaviour_logprobs": self.behaviour,
            "teacher_logprobs": self.teacher if with_teacher else None,
            "advantages": self.advantages,
            "mask": self.mask,
            "extras": self.extras,
        }


def ragged_batch(lengths: Sequence[int], seed: int, *, spread: float = 0.6) -> Padded:
    """Return responses of the requested lengths with all columns that options need.

    Log ratios have standard deviation `spread`, so that both sides of the clip and of the clamp occur.
    """
    generator = torch.Generator().manual_seed(seed)
    shape = (len(lengths), max([*lengths, 1]))

    def noise() -> Tensor:
        return spread * torch.randn(shape, generator=generator, dtype=torch.float64)

    behaviour = -2 * torch.rand(shape, generator=generator, dtype=torch.float64)
    batch = Padded(
        policy=behaviour + noise(),
        behaviour=behaviour,
        teacher=behaviour + 2 * noise(),
        advantages=torch.randn(len(lengths), generator=generator, dtype=torch.float64),
        mask=torch.arange(shape[1]) < torch.tensor(lengths)[:, None],
    )
    ours, theirs = (
        torch.randn((*shape, SUPPORT + 1), generator=generator, dtype=torch.float64).log_softmax(dim=-1)
        for _ in range(2)
    )
    extras = Extras(
        sampler_logprobs=behaviour + noise(),
        reference_logprobs=behaviour + noise(),
        entropies=2 * torch.rand(shape, generator=generator, dtype=torch.float64),
        is_imitated=(torch.rand(len(lengths), generator=generator) < 0.6)[:, None].expand(shape),
        support_logprobs=ours[..., :-1],
        teacher_support_logprobs=theirs[..., :-1],
        teacher_tail_logprobs=theirs[..., -1],
        progress=0.25,
    )
    return replace(batch, extras=extras)


def token_value_and_slope(
    policy: float, behaviour: float, teacher: float, advantage: float, settings: Settings
) -> tuple[float, float]:
    """Return the surrogate of one token (to maximize) and its derivative in `policy`."""
    gap = policy - teacher
    is_clamped = abs(gap) > settings.clamp
    log_ratio = settings.alpha * (policy - behaviour) + (1 - settings.alpha) * max(
        -settings.clamp, min(settings.clamp, gap)
    )
    slope_of_log_ratio = settings.alpha if is_clamped and not settings.straight_through else 1.0
    ratio = math.exp(log_ratio)
    if advantage > 0 and ratio > 1 + settings.eps_high:
        return (1 + settings.eps_high) * advantage, 0.0
    if advantage < 0 and ratio < 1 - settings.eps_low:
        return (1 - settings.eps_low) * advantage, 0.0
    return ratio * advantage, ratio * advantage * slope_of_log_ratio


def slow_loss_and_gradient(batch: Padded, settings: Settings) -> tuple[float, Tensor]:
    """Return the loss and its gradient, [B, T]."""
    num_responses, size = batch.policy.shape
    loss, gradient = 0.0, torch.zeros(num_responses, size, dtype=torch.float64)
    for i in range(num_responses):
        tokens = [t for t in range(size) if batch.mask[i, t]]
        for t in tokens:
            columns = (batch.policy, batch.behaviour, batch.teacher)
            value, slope = token_value_and_slope(
                *(column[i, t].item() for column in columns), batch.advantages[i].item(), settings
            )
            loss -= value / len(tokens) / num_responses
            gradient[i, t] = -slope / len(tokens) / num_responses
    return loss, gradient
