"""Base class of objectives: normalization, and a padded and a packed form with the same arithmetic.

Shape letters: B responses, T tokens of the longest response, S positions of a packed row.
"""

from __future__ import annotations

import abc
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from torch import Tensor

from rlad.config.objectives import ObjectiveSettings
from rlad.errors import TeacherScoresError
from rlad.objectives.aggregation import token_weights
from rlad.objectives.divergence import sampled_divergence
from rlad.objectives.metrics import MeanSums, MetricSums, mean_over
from rlad.objectives.tokens import Extras, Needs, Tokens, require, require_shape, select_tokens

LOG_RATIO_LIMIT = 20.0
"""Bound on log ratios before exp. e^20 = 4.9e8 is finite in float32 in every product with an advantage.

A token beyond the bound is far outside any clip range. If it is still unclipped (A < 0, ratio above the range), it gets
no gradient, because it has no relation to the sampled token any more.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenLosses:
    """Token losses of an objective, and the sums of its metrics.

    Attributes:
        losses: Loss of each token, in the shape of its `Tokens`; finite for invalid tokens too.
        means: Metric sums by name.
    """

    losses: Tensor
    means: Mapping[str, MeanSums]


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectiveOutput:
    """Result of an objective.

    Attributes:
        loss: Loss to minimize, a scalar with graph.
        sums: Detached metric sums.
    """

    loss: Tensor
    sums: MetricSums

    @property
    def metrics(self) -> dict[str, float]:
        """Metrics of this batch. Synchronizes with the device; a mean over zero tokens is omitted."""
        return self.sums.means()


SettingsT = TypeVar("SettingsT", bound=ObjectiveSettings)
_NO_EXTRAS = Extras()


class Objective(abc.ABC, Generic[SettingsT]):
    """Loss over sampled responses, in a padded and a packed form with the same arithmetic.

    All log-probabilities are in nats, of the sampled tokens, at the sampling temperature. Gradient flows only to the
    student's own columns. Half precision is computed in float32; float64 stays float64. A token is masked if its
    behaviour log-probability, or another one that the objective needs, is NaN or infinite. Masked tokens also leave the
    denominators of `response_mean`. Metrics count them.

    Subclasses implement `token_losses`.
    """

    def __init__(self, config: SettingsT) -> None:
        self.config = config
        self._needs = Needs(
            teacher=config.uses_teacher,
            sampler=config.corrects_mismatch,
            reference=config.uses_reference,
            entropy=config.entropy_bonus.is_on,
            support=config.teacher_support is not None,
            imitated=config.imitation_mask != "none",
            owner=f"objective {config.name!r} with {config!r}",
        )

    @abc.abstractmethod
    def token_losses(self, tokens: Tokens) -> TokenLosses:
        """Return the loss of each token, in the shape of `tokens`, without weights, reference KL and entropy bonus."""

    def __call__(
        self,
        *,
        policy_logprobs: Tensor,
        behaviour_logprobs: Tensor,
        teacher_logprobs: Tensor | None = None,
        advantages: Tensor,
        mask: Tensor,
        extras: Extras = _NO_EXTRAS,
    ) -> ObjectiveOutput:
        """Return the loss of a padded batch.

        With the default aggregation it is the mean over responses of the mean over their tokens. All B responses count;
        an empty or fully masked response counts as 0.

        Args:
            policy_logprobs: Student log-probabilities, [B, T], with graph.
            behaviour_logprobs: Behaviour log-probabilities, [B, T].
            teacher_logprobs: Teacher log-probabilities, [B, T]; ignored if the objective does not use a teacher.
            advantages: Advantages, [B].
            mask: Response tokens to train on, bool or 0 and 1, [B, T].
            extras: Columns that the configured options need in addition.

        Raises:
            ContractError: Shapes differ, the mask holds values other than 0 and 1, or a required column is missing.
        """
        require(policy_logprobs.ndim == 2, f"policy_logprobs must be [B, T], got shape {list(policy_logprobs.shape)}")
        require_shape("mask", mask, policy_logprobs.shape)
        require_shape("advantages", advantages, policy_logprobs.shape[:1])
        mask = _as_bool(mask)
        tokens, totals = select_tokens(
            self._needs,
            policy=policy_logprobs,
            behaviour=behaviour_logprobs,
            teacher=teacher_logprobs,
            advantages=advantages[:, None].expand_as(policy_logprobs),
            included=mask,
            extras=extras,
        )
        weights = token_weights(
            mask,
            tokens.is_valid,
            aggregation=self.config.aggregation,
            fixed_length=self.config.fixed_length,
            dtype=tokens.policy_logprobs.dtype,
        )
        return self._output(tokens, totals, weights, extras)

    def packed(
        self,
        *,
        policy_logprobs: Tensor,
        behaviour_logprobs: Tensor,
        teacher_logprobs: Tensor | None = None,
        advantages: Tensor,
        weights: Tensor,
        extras: Extras = _NO_EXTRAS,
    ) -> ObjectiveOutput:
        """Return the loss of a packed row: the weighted sum of token losses over positions with a positive weight.

        The weights include the normalizer of the whole optimizer step, so losses of micro-batches and ranks are added,
        never averaged. A non-finite token found here is dropped from the sum, but the weights of its response were
        computed with it. Set the weight of such tokens to 0 beforehand, as `rlad.packing.build_training_batch` does.

        Args:
            policy_logprobs: Student log-probabilities, [S], with graph.
            behaviour_logprobs: Behaviour log-probabilities, [S].
            teacher_logprobs: Teacher log-probabilities, [S]; ignored if the objective does not use a teacher.
            advantages: Advantages, [S].
            weights: Loss weights, [S].
            extras: Columns that the configured options need in addition.

        Raises:
            ContractError: Shapes differ, or a required column is missing.
        """
        require(policy_logprobs.ndim == 1, f"policy_logprobs must be [S], got shape {list(policy_logprobs.shape)}")
        require_shape("weights", weights, policy_logprobs.shape)
        require_shape("advantages", advantages, policy_logprobs.shape)
        tokens, totals = select_tokens(
            self._needs,
            policy=policy_logprobs,
            behaviour=behaviour_logprobs,
            teacher=teacher_logprobs,
            advantages=advantages,
            included=weights > 0,
            extras=extras,
        )
        return self._output(tokens, totals, weights.detach().to(tokens.policy_logprobs.dtype), extras)

    def _output(self, tokens: Tokens, totals: Mapping[str, Tensor], weights: Tensor, extras: Extras) -> ObjectiveOutput:
        """Add the terms that all objectives share, and sum the weighted token losses."""
        token_losses = self.token_losses(tokens)
        losses, means = token_losses.losses, dict(token_losses.means)
        config = self.config
        if tokens.reference_logprobs is not None:
            to_reference = tokens.policy_logprobs - tokens.reference_logprobs
            divergence = sampled_divergence(to_reference, config.reference_kl_estimator, LOG_RATIO_LIMIT)
            losses = losses + config.reference_kl * divergence
            means["objective/reference_kl"] = mean_over(divergence, tokens.is_valid)
        if tokens.teacher_logprobs is not None:
            means["objective/teacher_disagreement_fraction"] = _disagreement(tokens)
        if tokens.entropies is not None:
            coefficient = (
                config.entropy_bonus.coefficient if extras.entropy_coefficient is None else extras.entropy_coefficient
            )
            losses = losses - coefficient * tokens.entropies
            means["objective/entropy"] = mean_over(tokens.entropies, tokens.is_valid)
        loss = (weights.where(tokens.is_valid, 0) * losses).sum()
        return ObjectiveOutput(loss=loss, sums=MetricSums.of(means=means, totals=totals))


@torch.no_grad()
def _disagreement(tokens: Tokens) -> MeanSums:
    """Return the share of tokens with an advantage that imitation at pi_old would move against its sign."""
    assert tokens.teacher_logprobs is not None
    against = (tokens.behaviour_logprobs - tokens.teacher_logprobs) * tokens.advantages > 0
    return mean_over(against, tokens.is_valid & (tokens.advantages != 0))


def _as_bool(mask: Tensor) -> Tensor:
    if mask.dtype == torch.bool:
        return mask
    require(
        bool(((mask == 0) | (mask == 1)).all()), "mask must hold only 0 and 1; pass other weights to the packed form"
    )
    return mask != 0


def check_missing_teacher(missing: int, total: int, tolerance: float) -> None:
    """Raise an error if too many teacher log-probabilities of a step are missing, NaN or infinite.

    Args:
        missing: Response tokens without a finite teacher log-probability, counted over the whole step and all ranks.
        total: Response tokens of the whole step and all ranks.
        tolerance: Allowed fraction, `learner.max_missing_teacher_fraction`.

    Raises:
        TeacherScoresError: `missing / total` exceeds `tolerance`.
    """
    if total > 0 and missing / total > tolerance:
        raise TeacherScoresError(
            f"the teacher returned no finite log-probability for {missing} of {total} response tokens "
            f"({missing / total:.2%}), more than learner.max_missing_teacher_fraction allows ({tolerance:.2%}); "
            "check the teacher's log, or raise the limit to train without those tokens"
        )
