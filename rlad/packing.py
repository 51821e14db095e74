"""Packed training rows: scored groups become the columns that the learner trains on.

Shape letters: P prompt tokens, T tokens of one response, K tokens of the teacher's support, H size of the teacher's
hidden state.
`rlad.microbatches` decides which sequences share a row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from rlad.advantages import group_advantages, imitated_responses
from rlad.contracts import ScoredGroup, TeacherScores, finite_rows
from rlad.errors import ContractError
from rlad.training_batch import TrainingBatch

if TYPE_CHECKING:  # The broker imports this module and must not load the configuration models.
    from rlad.config.objectives import ObjectiveSettings

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchCounts:
    """Contents of a micro-batch. Counts of micro-batches and ranks add up.

    Attributes:
        responses: Requested responses, including empty and masked ones.
        truncated_responses: Requested responses that reached the token budget.
        response_tokens: Tokens of the requested responses.
        trained_tokens: Tokens with a positive weight.
        missing_teacher_tokens: Response tokens without a finite teacher log-probability; 0 if no teacher is used.
        missing_reference_tokens: Response tokens without a finite log-probability of the reference policy; 0 if no
            reference policy is used.
        missing_behaviour_tokens: Response tokens without a finite behaviour log-probability.
    """

    responses: int = 0
    truncated_responses: int = 0
    response_tokens: int = 0
    trained_tokens: int = 0
    missing_teacher_tokens: int = 0
    missing_reference_tokens: int = 0
    missing_behaviour_tokens: int = 0

    def __add__(self, other: BatchCounts) -> BatchCounts:
        return BatchCounts(
            **{
                name: left + right
                for name, left, right in zip(self.__slots__, astuple(self), astuple(other), strict=True)
            }
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class LossNormalizer:
    """Denominators of the loss of one optimizer step, counted over all its micro-batches and ranks.

    Attributes:
        num_responses: Number of responses of the step, including empty, masked and unjudged ones. Known before
            sampling, so a response that is left out does not raise the weight of the others.
        num_tokens: Number of response tokens of the step. Tokens of responses that are skipped for their equal rewards
            count; tokens of responses that are masked as truncated, or were not judged, do not. Known only once all
            responses are sampled, and therefore None unless the aggregation is `token_mean`.
    """

    num_responses: int
    num_tokens: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchRules:
    """Rules that turn scored groups into training columns.

    Attributes:
        objective: Settings that decide which columns the loss needs, and how it averages.
        truncated: `mask` gives responses that reached the token budget weight 0; `keep` trains on them.
        output_layer: SHA-256 of the output layer by which the learner multiplies the teacher's hidden states; None if
            the teacher sends log-probabilities.
    """

    objective: ObjectiveSettings
    truncated: Literal["keep", "mask"] = "keep"
    output_layer: str | None = None

    def token_weight(self, normalizer: LossNormalizer, valid_tokens: int) -> float:
        """Return the weight of each token of a response with `valid_tokens` valid tokens.

        `rlad.objectives.aggregation.token_weights` gives the same weights for padded batches.

        Raises:
            ContractError: The aggregation is `token_mean`, and the normalizer has no number of tokens.
        """
        match self.objective.aggregation:
            case "response_mean":
                return 1 / (normalizer.num_responses * valid_tokens)
            case "token_mean":
                if not normalizer.num_tokens:
                    raise ContractError(
                        "build_training_batch: aggregation `token_mean` needs the number of tokens of the whole step; "
                        f"got normalizer.num_tokens {normalizer.num_tokens}"
                    )
                return 1 / normalizer.num_tokens
            case "fixed_length":
                return 1 / (normalizer.num_responses * (self.objective.fixed_length or 1))


def build_training_batch(
    groups: Mapping[str, ScoredGroup],
    sequences: Sequence[tuple[str, int]],
    *,
    normalizer: LossNormalizer,
    rules: BatchRules,
) -> tuple[TrainingBatch, BatchCounts]:
    """Build one packed row: prompt and response of each sequence end to end, with every column that the loss needs.

    A token is invalid, with weight 0, if the objective needs a log-probability of it (sampler, teacher or reference
    policy) that is not finite, if its response is truncated and `rules.truncated` is `mask`, or if the verifier did not
    judge its response. A response without a valid token is left out of the row. If no response is left, the row is
    `dummy_batch`.

    Args:
        groups: Scored groups by uid.
        sequences: Pairs (group uid, index of the response in the group).
        normalizer: Denominators of the whole optimizer step.
        rules: Objective, truncation and overlong penalty.

    Raises:
        ContractError: A uid or response index is unknown, a group lacks scores that the objective needs, or there are
            more sequences than `normalizer.num_responses`.
    """
    if len(sequences) > normalizer.num_responses:
        raise ContractError(
            f"build_training_batch: expected at most normalizer.num_responses = {normalizer.num_responses} sequences, "
            f"the responses of the whole step; got {len(sequences)}"
        )
    trained = {uid: _TrainedGroup(_group(groups, uid), rules) for uid, _ in sequences}
    rows: list[dict[str, Array]] = []
    counts = BatchCounts()
    for uid, index in sequences:
        group = trained[uid]
        is_valid, response_counts = group.valid_tokens(index)
        counts += response_counts
        if is_valid.any():
            rows.append(group.columns(index, is_valid, rules.token_weight(normalizer, int(is_valid.sum()))))
    support_size = max((group.support_size for group in trained.values()), default=0)
    hidden_size = max((group.hidden_size for group in trained.values()), default=0)
    if not rows:
        return dummy_batch(rules.objective, support_size=support_size, output_layer=rules.output_layer), counts
    columns: dict[str, Any] = {
        "teacher_logprobs": None,
        **{name: np.concatenate([row[name] for row in rows]) for name in rows[0]},
    }
    offsets = np.cumsum([0, *(len(row["token_ids"]) for row in rows)], dtype=np.int32)
    columns |= {"support_size": support_size, "hidden_size": hidden_size}
    return TrainingBatch(**columns, sequence_offsets=offsets), counts


def dummy_batch(
    objective: ObjectiveSettings, *, support_size: int = 0, output_layer: str | None = None
) -> TrainingBatch:
    """Return a row of one token with weight 0.

    A rank without work runs it, so that the rank joins every collective and adds exactly zero to the gradient.

    Args:
        objective: Settings that decide which columns the row has.
        support_size: Size K of the teacher's support. With 0, meaning unknown, an objective that needs a support gets
            a support of one token.
        output_layer: As in `BatchRules`. With hidden states the row has no column of the teacher.
    """
    sends_logprobs = output_layer is None
    ids, values = np.zeros(1, dtype=np.int64), np.zeros(1, dtype=np.float32)
    size = (support_size or 1) if objective.teacher_support is not None and sends_logprobs else 0
    support: dict[str, Any] = {}
    if size:
        support = {
            "support_ids": np.zeros(size, np.int64),
            "teacher_support_logprobs": np.zeros(size, np.float32),
            "teacher_tail_logprobs": values,
        }
    return TrainingBatch(
        token_ids=ids,
        target_ids=ids,
        position_ids=ids,
        sequence_offsets=np.array([0, 1], dtype=np.int32),
        behaviour_logprobs=values,
        teacher_logprobs=values if objective.uses_teacher and sends_logprobs else None,
        advantages=values,
        weights=values,
        reference_logprobs=values if objective.uses_reference else None,
        is_imitated=None if objective.imitation_mask == "none" else np.zeros(1, dtype=np.bool_),
        support_size=size,
        **support,
    )


def _group(groups: Mapping[str, ScoredGroup], uid: str) -> ScoredGroup:
    if uid not in groups:
        raise ContractError(
            f"build_training_batch: a sequence refers to group {uid}, not among the {len(groups)} groups passed"
        )
    return groups[uid]


class _TrainedGroup:
    """A scored group with its advantages and the scores that the objective needs."""

    def __init__(self, scored: ScoredGroup, rules: BatchRules) -> None:
        objective, verdicts = rules.objective, scored.verdicts
        self.scored = scored
        self._masks_truncated = rules.truncated == "mask"
        self._teacher = self._required("teacher", scored.teacher_scores) if objective.uses_teacher else None
        self._reference = self._required("reference", scored.reference_scores) if objective.uses_reference else None
        self.support_size = self.hidden_size = 0
        if self._teacher is not None and (self._teacher.output_layer or None) != rules.output_layer:
            raise ContractError(
                f"build_training_batch: the teacher scores of group {scored.group.uid} belong to output layer "
                f"{self._teacher.output_layer or None}; the learner has {rules.output_layer}. The teacher's model "
                "changed, or it sends something else than the run expects"
            )
        if objective.teacher_support is not None and self._teacher is not None:
            self.support_size, self.hidden_size = self._teacher.support_size, self._teacher.hidden_size
            if self.support_size == 0 and self.hidden_size == 0:
                raise ContractError(
                    f"build_training_batch: the teacher scores of group {scored.group.uid} have no support, "
                    f"but the objective needs support {objective.teacher_support!r}"
                )
        self._is_judged = verdicts.is_judged
        self._advantages = group_advantages(scored.rewards, objective.advantage_estimator, is_judged=self._is_judged)
        self._is_imitated = (
            None
            if objective.imitation_mask == "none"
            else imitated_responses(verdicts.rewards, objective.imitation_mask)
        )

    def valid_tokens(self, index: int) -> tuple[Array, BatchCounts]:
        """Return which tokens of a response to train on, bool [T], and the response's counts.

        Raises:
            ContractError: The group has no response `index`.
        """
        group = self.scored.group
        if not 0 <= index < group.num_responses:
            raise ContractError(
                f"build_training_batch: group {group.uid} has {group.num_responses} responses; "
                f"got response index {index}"
            )
        tokens = group.response(index)
        has_behaviour = np.isfinite(group.behaviour_logprobs[tokens])
        has_teacher, has_reference = (
            np.ones_like(has_behaviour) if scores is None else self._is_finite(scores, tokens)
            for scores in (self._teacher, self._reference)
        )
        is_truncated = bool(group.is_truncated[index])
        is_masked = (is_truncated and self._masks_truncated) or not self._is_judged[index]
        is_valid = has_behaviour & has_teacher & has_reference & (not is_masked)
        return is_valid, BatchCounts(
            responses=1,
            truncated_responses=int(is_truncated),
            response_tokens=len(is_valid),
            trained_tokens=int(is_valid.sum()),
            missing_teacher_tokens=int((~has_teacher).sum()),
            missing_reference_tokens=int((~has_reference).sum()),
            missing_behaviour_tokens=int((~has_behaviour).sum()),
        )

    def columns(self, index: int, is_valid: Array, weight: float) -> dict[str, Array]:
        """Return the columns of one sequence, P + T positions.

        Position P - 1 + t predicts response token t. The last position predicts nothing.

        Args:
            index: Index of the response in the group.
            is_valid: Tokens to train on, bool [T].
            weight: Weight of each valid token.
        """
        group = self.scored.group
        tokens = group.response(index)
        token_ids = np.concatenate([group.prompt_ids, group.response_ids[tokens]]).astype(np.int64)
        length, first = len(token_ids), len(group.prompt_ids) - 1

        def shifted(values: Array | float) -> Array:
            column = np.zeros(length, dtype=np.float32)
            column[first : length - 1] = np.where(is_valid, values, 0)
            return column

        columns = {
            "token_ids": token_ids,
            "target_ids": np.append(token_ids[1:], 0),
            "position_ids": np.arange(length, dtype=np.int64),
            "behaviour_logprobs": shifted(group.behaviour_logprobs[tokens]),
            "advantages": np.full(length, self._advantages[index], dtype=np.float32),
            "weights": shifted(weight),
        }
        if self._teacher is not None and self.hidden_size:
            columns["teacher_hidden_states"] = self._teacher.hidden_rows[tokens][is_valid].ravel()
        elif self._teacher is not None:
            columns["teacher_logprobs"] = shifted(self._teacher.logprobs[tokens])
        if self._reference is not None:
            columns["reference_logprobs"] = shifted(self._reference.logprobs[tokens])
        if self._is_imitated is not None:
            columns["is_imitated"] = np.full(length, self._is_imitated[index])
        if self.support_size and self._teacher is not None:
            ids, logprobs, tail = _support_of(self._teacher, tokens)
            row_ids = np.zeros((length, self.support_size), np.int64)
            row_logprobs = np.zeros((length, self.support_size), np.float32)
            row_ids[first : length - 1] = ids
            row_logprobs[first : length - 1] = np.where(is_valid[:, None], logprobs, 0)
            columns |= {
                "support_ids": row_ids.ravel(),
                "teacher_support_logprobs": row_logprobs.ravel(),
                "teacher_tail_logprobs": shifted(tail),
            }
        return columns

    def _is_finite(self, scores: TeacherScores, tokens: slice) -> Array:
        """Return which tokens have all the scores that the objective needs, bool [T]. A tail of -inf is a score."""
        if self.hidden_size and scores is self._teacher:
            return finite_rows(scores.hidden_rows[tokens])
        is_finite: Array = np.isfinite(scores.logprobs[tokens])
        if self.support_size and scores is self._teacher:
            _, logprobs, tail = _support_of(scores, tokens)
            is_finite = is_finite & np.isfinite(logprobs).all(axis=1) & ~np.isnan(tail) & (tail < np.inf)
        return is_finite

    def _required(self, name: str, scores: TeacherScores | None) -> TeacherScores:
        if scores is None:
            raise ContractError(
                f"build_training_batch: group {self.scored.group.uid} has no {name} scores, "
                f"but the objective uses the {name}"
            )
        return scores


def _support_of(scores: TeacherScores, tokens: slice) -> tuple[Array, Array, Array]:
    """Return the support of a response: token ids [T, K], log-probabilities [T, K] and tail log-probabilities [T]."""
    ids, logprobs, tail = scores.support_ids, scores.support_logprobs, scores.tail_logprobs
    assert ids is not None
    assert logprobs is not None
    assert tail is not None
    rows = slice(tokens.start * scores.support_size, tokens.stop * scores.support_size)
    return ids[rows].reshape(-1, scores.support_size), logprobs[rows].reshape(-1, scores.support_size), tail[tokens]
