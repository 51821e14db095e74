"""What all objectives share: the loss's normaliser, and the padded and packed forms of one arithmetic.

Shape letters: B responses, T tokens of the longest, S tokens of a packed row.
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
"""Log ratios are held within +-20 before exp: e^20 = 4.9e8, finite in float32 in every product with an advantage. Such a token is far outside any
clip range; one still unclipped there (A < 0, ratio above the range) has lost all relation to its sample, and gets no gradient."""


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
_NO_EXTRAS = Extras()


class Objective(abc.ABC, Generic[SettingsT]):
    """A loss over sampled responses, in two forms with one arithmetic.

    Log-probabilities are in nats, of the sampled tokens, all at the sampling temperature. Gradient flows to the student's own columns alone. Half
    precision is computed in float32, float64 stays float64. A token whose behaviour log-probability, or any other that the objective needs, is
    NaN or infinite counts as masked, in the denominators of `response_mean` too; the metrics count such tokens.
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
            who=f"objective {config.name!r} with {config!r}",
        )

    @abc.abstractmethod
    def token_losses(self, tokens: Tokens) -> TokenLosses:
        """The loss of each token, before any averaging, without the terms that all objectives share."""

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
        """The padded form. With the default aggregation, the mean over responses of the mean over their tokens: all B responses count, an empty or
        fully masked one as 0.

        Args:
            policy_logprobs: [B, T], with graph.
            behaviour_logprobs: [B, T].
            teacher_logprobs: [B, T]; not looked at where the objective uses no teacher.
            advantages: [B].
            mask: [B, T], boolean or 0 and 1: the response tokens to train on.
            extras: what the configured options need beyond these.

        Raises:
            ContractError: shapes differ, the mask holds other values, or a needed column is missing.
        """
        require(policy_logprobs.ndim == 2, f"policy_logprobs must be [B, T], got shape {list(policy_logprobs.shape)}")
        require_shape("mask", mask, policy_logprobs.shape)
        require_shape("advantages", advantages, policy_logprobs.shape[:1])
        if mask.dtype != torch.bool:
            require(
                bool(((mask == 0) | (mask == 1)).all()),
                "mask must hold only 0 and 1; weights of other sizes go into the packed form",
            )
            mask = mask != 0
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
        """The packed form: the sum of weighted token losses over the positions with a positive weight.

        The weights carry the normaliser of the whole optimizer step, so losses of micro-batches and ranks are added, never averaged. A token that
        turns out non-finite here is dropped from the sum, but its response's weights were computed with it: give it weight 0 beforehand, as
        `rlad.packing.build_training_batch` does.

        Args:
            policy_logprobs: [S], with graph.
            behaviour_logprobs, teacher_logprobs, advantages, weights: [S].
            extras: what the configured options need beyond these.

        Raises:
            ContractError: shapes differ, or a needed column is missing.
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
        own = self.token_losses(tokens)
        losses, means = own.losses, dict(own.means)
        config = self.config
        if tokens.reference_logprobs is not None:
            to_reference = tokens.policy_logprobs - tokens.reference_logprobs
            divergence = sampled_divergence(to_reference, config.reference_kl_estimator, LOG_RATIO_LIMIT)
            losses = losses + config.reference_kl * divergence
            means["objective/reference_kl"] = mean_over(divergence, tokens.is_valid)
        if tokens.entropies is not None:
            coefficient = (
                config.entropy_bonus.coefficient if extras.entropy_coefficient is None else extras.entropy_coefficient
            )
            losses = losses - coefficient * tokens.entropies
            means["objective/entropy"] = mean_over(tokens.entropies, tokens.is_valid)
        loss = (weights.where(tokens.is_valid, 0) * losses).sum()
        return ObjectiveOutput(loss=loss, sums=MetricSums.of(means=means, totals=totals))


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
