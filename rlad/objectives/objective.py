"""What all objectives share: which tokens count, how much each weighs, and the padded and packed forms of one arithmetic.

Shape letters: B responses, T tokens of the longest, S tokens of a packed row.
"""

from __future__ import annotations

import abc
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, TypeVar

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from rlad.errors import ContractError, TeacherScoresError
from rlad.objectives.aggregation import response_mean_weights
from rlad.objectives.metrics import MeanSums, MetricSums


class ObjectiveSettings(BaseModel, abc.ABC):
    """Base of the objectives' configurations.

    Attributes:
        name: the objective's name, its tag in `ObjectiveConfig`.
        zero_advantage_gives_zero_gradient: a response with advantage 0 may be left out of the forward pass.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    zero_advantage_gives_zero_gradient: ClassVar[bool]

    @property
    @abc.abstractmethod
    def uses_teacher(self) -> bool:
        """Whether the loss needs the teacher's log-probabilities."""

    @abc.abstractmethod
    def build(self) -> Objective[Any]:
        """The objective with these settings."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tokens:
    """Tokens as an objective's elementwise function sees them: any shape, all of one, in float32 or float64.

    Every column holds 0 where `is_valid` is false, so what stood there (padding, NaN, infinity) reaches neither loss nor gradient. Only
    `policy_logprobs` carries a graph.
    """

    policy_logprobs: Tensor
    behaviour_logprobs: Tensor
    teacher_logprobs: Tensor | None
    advantages: Tensor
    is_valid: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenLosses:
    """An objective's loss of each token (the shape of its `Tokens`; finite where invalid), and the sums its metrics are means of."""

    losses: Tensor
    means: Mapping[str, MeanSums]


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectiveOutput:
    """The loss to minimise (a scalar with graph) and the detached sums behind the metrics."""

    loss: Tensor
    sums: MetricSums

    @property
    def metrics(self) -> dict[str, float]:
        """This batch's metrics alone. Waits for the device; a mean over no token is left out."""
        return self.sums.means()


SettingsT = TypeVar("SettingsT", bound=ObjectiveSettings)


class Objective(abc.ABC, Generic[SettingsT]):
    """A loss over sampled responses, in two forms with one arithmetic.

    Log-probabilities are in nats, of the sampled tokens, all at the sampling temperature. Gradient flows to `policy_logprobs` alone. Half precision
    is computed in float32, float64 stays float64. A token whose behaviour log-probability, or teacher log-probability where the teacher is used, is
    NaN or infinite counts as masked, in the denominators too; the metrics count such tokens.
    """

    def __init__(self, config: SettingsT) -> None:
        self.config = config

    @abc.abstractmethod
    def token_losses(self, tokens: Tokens) -> TokenLosses:
        """The loss of each token, before any averaging."""

    def __call__(
        self,
        *,
        policy_logprobs: Tensor,
        behaviour_logprobs: Tensor,
        teacher_logprobs: Tensor | None = None,
        advantages: Tensor,
        mask: Tensor,
    ) -> ObjectiveOutput:
        """The padded form: mean over responses of the mean over their tokens. All B responses count, an empty or fully masked one as 0.

        Args:
            policy_logprobs: [B, T], with graph.
            behaviour_logprobs: [B, T].
            teacher_logprobs: [B, T]; not looked at where the objective uses no teacher.
            advantages: [B].
            mask: [B, T], boolean or 0 and 1: the response tokens to train on.

        Raises:
            ContractError: shapes differ, the mask holds other values, or a needed teacher is missing.
        """
        _require(policy_logprobs.ndim == 2, f"policy_logprobs must be [B, T], got shape {list(policy_logprobs.shape)}")
        _require_shape("mask", mask, policy_logprobs.shape)
        _require_shape("advantages", advantages, policy_logprobs.shape[:1])
        if mask.dtype != torch.bool:
            _require(bool(((mask == 0) | (mask == 1)).all()), "mask must hold only 0 and 1; weights of other sizes go into the packed form")
            mask = mask != 0
        tokens, totals = self._tokens(policy_logprobs, behaviour_logprobs, teacher_logprobs, advantages[:, None].expand_as(policy_logprobs), mask)
        return self._output(tokens, totals, response_mean_weights(tokens.is_valid, tokens.policy_logprobs.dtype))

    def packed(
        self,
        *,
        policy_logprobs: Tensor,
        behaviour_logprobs: Tensor,
        teacher_logprobs: Tensor | None = None,
        advantages: Tensor,
        weights: Tensor,
    ) -> ObjectiveOutput:
        """The packed form: the sum of weighted token losses over the positions with a positive weight.

        The weights carry the normaliser of the whole optimizer step, so losses of micro-batches and ranks are added, never averaged. A token that
        turns out non-finite here is dropped from the sum, but its response's weights were computed with it: give it weight 0 beforehand, as
        `rlad.packing.build_training_batch` does.

        Args:
            policy_logprobs: [S], with graph.
            behaviour_logprobs, teacher_logprobs, advantages, weights: [S].

        Raises:
            ContractError: shapes differ, or a needed teacher is missing.
        """
        _require(policy_logprobs.ndim == 1, f"policy_logprobs must be [S], got shape {list(policy_logprobs.shape)}")
        _require_shape("weights", weights, policy_logprobs.shape)
        _require_shape("advantages", advantages, policy_logprobs.shape)
        tokens, totals = self._tokens(policy_logprobs, behaviour_logprobs, teacher_logprobs, advantages, weights > 0)
        return self._output(tokens, totals, weights.detach().to(tokens.policy_logprobs.dtype))

    def _tokens(
        self, policy: Tensor, behaviour: Tensor, teacher: Tensor | None, advantages: Tensor, is_included: Tensor
    ) -> tuple[Tokens, dict[str, Tensor]]:
        """The tokens that count, and how many of the included ones are missing a log-probability."""
        _require(policy.is_floating_point(), f"policy_logprobs must be floating point, got {policy.dtype}")
        _require_shape("behaviour_logprobs", behaviour, policy.shape)
        is_valid = is_included & behaviour.isfinite()
        totals = {"objective/behaviour_missing_tokens": (is_included & ~behaviour.isfinite()).sum()}
        if not self.config.uses_teacher:
            teacher = None
        elif teacher is None:
            raise ContractError(f"objective {self.config.name!r} with {self.config!r} needs teacher_logprobs, got None")
        else:
            _require_shape("teacher_logprobs", teacher, policy.shape)
            is_valid = is_valid & teacher.isfinite()
            totals["objective/teacher_missing_tokens"] = (is_included & ~teacher.isfinite()).sum()
        dtype = torch.float64 if policy.dtype == torch.float64 else torch.float32

        def constant(column: Tensor) -> Tensor:
            return column.detach().to(dtype).where(is_valid, 0)

        tokens = Tokens(
            policy_logprobs=_upcast(policy, dtype).where(is_valid, 0),
            behaviour_logprobs=constant(behaviour),
            teacher_logprobs=None if teacher is None else constant(teacher),
            advantages=constant(advantages),
            is_valid=is_valid,
        )
        return tokens, totals

    def _output(self, tokens: Tokens, totals: Mapping[str, Tensor], weights: Tensor) -> ObjectiveOutput:
        result = self.token_losses(tokens)
        loss = (weights.where(tokens.is_valid, 0) * result.losses).sum()
        return ObjectiveOutput(loss=loss, sums=MetricSums.of(means=result.means, totals=totals))


def check_missing_teacher(missing: int, total: int, tolerance: float) -> None:
    """Fail a step whose teacher scores are too often missing, NaN or infinite. Counts are of the whole step, all ranks together.

    Raises:
        TeacherScoresError: `missing / total` is above `tolerance`.
    """
    if total > 0 and missing / total > tolerance:
        raise TeacherScoresError(
            f"the teacher gave no finite log-probability for {missing} of {total} response tokens ({missing / total:.2%}), more than the "
            f"{tolerance:.2%} that learner.max_missing_teacher_fraction allows: look at the teacher's log, or raise that limit to train without them"
        )


def _upcast(policy: Tensor, dtype: torch.dtype) -> Tensor:
    """`policy` in `dtype`. A gradient too large for float16 comes back as its largest number: a ratio near the limit overflows it."""
    upcast = policy.to(dtype)
    if policy.dtype == torch.float16 and upcast.requires_grad:
        largest = torch.finfo(torch.float16).max
        upcast.register_hook(lambda gradient: gradient.clamp(-largest, largest))
    return upcast


def _require_shape(name: str, tensor: Tensor, shape: torch.Size) -> None:
    _require(tensor.shape == shape, f"{name} must have shape {list(shape)} to fit policy_logprobs, got {list(tensor.shape)}")


def _require(claim: bool, problem: str) -> None:
    if not claim:
        raise ContractError(f"objective: {problem}")
