"""How a step's responses become micro-batches: which of them share a packed row, and what that row holds.

Shape letters: M sequences, P prompt tokens, N tokens of one response, S tokens of a packed row.
"""

from __future__ import annotations

import bisect
import heapq
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from rlad.advantages import group_advantages, imitated_responses
from rlad.contracts import ScoredGroup, TeacherScores, TrainingBatch
from rlad.errors import ContractError

if TYPE_CHECKING:  # with it would come all models of the configuration, which the broker has no use for
    from rlad.config.objectives import ObjectiveSettings

Array = npt.NDArray[Any]


def plan_microbatches(lengths: Sequence[int], *, token_budget: int, ranks: int) -> list[list[list[int]]]:
    """Share sequences out to ranks and micro-batches.

    Every rank gets the same number of micro-batches, since ZeRO's collectives run in lockstep; an empty one means that the rank joins with
    `dummy_batch`. Their number is that of best-fit decreasing, rounded up to a multiple of `ranks`; within it, tokens are spread evenly, longest
    sequences first, which spreads the quadratic cost of attention too. Micro-batches that run at the same time are of similar size, the largest come
    first (a row too large for the memory fails at once), and a rank's total differs from another's by at most `token_budget` or the longest sequence.

    Deterministic; O(M log M) comparisons.

    Args:
        lengths: tokens of each sequence, at least 1.
        token_budget: the most tokens of a micro-batch. A longer sequence gets one of its own.
        ranks: data-parallel ranks.

    Returns:
        For each rank its micro-batches, each the ascending indices of its sequences. No sequences, no micro-batches.

    Raises:
        ContractError: an argument below 1.
    """
    if token_budget < 1 or ranks < 1 or any(length < 1 for length in lengths):
        raise ContractError(
            f"plan_microbatches: token_budget {token_budget}, ranks {ranks} and every length must be at least 1, got {list(lengths)}"
        )
    order = sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))
    packed = _best_fit(order, lengths, token_budget)
    num_rows = -(-len(packed) // ranks) * ranks
    rows = _spread(order, lengths, token_budget, num_rows)
    if rows is None:
        rows = packed + [[] for _ in range(num_rows - len(packed))]
    return _deal(rows, lengths, ranks)


def _best_fit(order: Sequence[int], lengths: Sequence[int], token_budget: int) -> list[list[int]]:
    """Each sequence into the fullest row that still holds it."""
    rows: list[list[int]] = []
    space: list[tuple[int, int]] = []  # (free tokens, row), ascending
    for index in order:
        at = bisect.bisect_left(space, (lengths[index], 0))
        if at < len(space):
            free, row = space.pop(at)
        else:
            free, row = token_budget, len(rows)
            rows.append([])
        rows[row].append(index)
        bisect.insort(space, (free - lengths[index], row))
    return rows


def _spread(order: Sequence[int], lengths: Sequence[int], token_budget: int, num_rows: int) -> list[list[int]] | None:
    """Each sequence into the emptiest row. None where that does not fit: the emptiest row had no room."""
    rows: list[list[int]] = [[] for _ in range(num_rows)]
    load = [(0, row) for row in range(num_rows)]
    for index in order:
        tokens, row = load[0]
        if tokens > 0 and tokens + lengths[index] > token_budget:
            return None
        heapq.heapreplace(load, (tokens + lengths[index], row))
        rows[row].append(index)
    return rows


def _deal(rows: Sequence[Sequence[int]], lengths: Sequence[int], ranks: int) -> list[list[list[int]]]:
    """Rows of similar size to the ranks at once, the largest of them to the rank with the fewest tokens so far."""
    loads = {row: sum(lengths[index] for index in members) for row, members in enumerate(rows)}
    by_size = sorted(loads, key=lambda row: (-loads[row], row))
    plan: list[list[list[int]]] = [[] for _ in range(ranks)]
    totals = [0] * ranks
    for start in range(0, len(by_size), ranks):
        waiting = sorted(range(ranks), key=lambda rank: (totals[rank], rank))
        for rank, row in zip(waiting, by_size[start : start + ranks], strict=True):
            plan[rank].append(sorted(rows[row]))
            totals[rank] += loads[row]
    return plan


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchCounts:
    """What went into a micro-batch. Counts of micro-batches and ranks are added.

    Attributes:
        responses: those asked for, empty and masked ones included.
        truncated_responses: those of them that hit the token budget.
        response_tokens: all their tokens.
        trained_tokens: tokens with a positive weight.
        missing_teacher_tokens: response tokens without a finite teacher log-probability; 0 where no teacher is used.
        missing_reference_tokens: the same of the frozen reference.
        missing_behaviour_tokens: response tokens without a finite behaviour log-probability.
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
                name: mine + theirs
                for name, mine, theirs in zip(self.__slots__, astuple(self), astuple(other), strict=True)
            }
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class LossNormalizer:
    """The normaliser of an optimizer step, over all its micro-batches and ranks.

    Attributes:
        num_responses: whatever becomes of them; known before they are sampled.
        num_tokens: of those responses that are trained on or left out for their equal rewards, not of those masked for their length. Known only when
            all are sampled, so counted only for the aggregation that needs it; else None.
    """

    num_responses: int
    num_tokens: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchRules:
    """How scored groups become training columns.

    Attributes:
        objective: which columns its loss needs, and how it averages.
        truncated: whether responses that hit the token budget are trained on.
    """

    objective: ObjectiveSettings
    truncated: Literal["keep", "mask"] = "keep"

    def token_weight(self, size: LossNormalizer, valid_tokens: int) -> float:
        """The weight of one token of a response with so many valid ones: `rlad.objectives.aggregation.token_weights`, response by response."""
        match self.objective.aggregation:
            case "response_mean":
                return 1 / (size.num_responses * valid_tokens)
            case "token_mean":
                if not size.num_tokens:
                    raise ContractError(
                        "build_training_batch: aggregation `token_mean` needs the number of tokens of the whole step"
                    )
                return 1 / size.num_tokens
            case "fixed_length":
                return 1 / (size.num_responses * (self.objective.fixed_length or 1))


def build_training_batch(
    groups: Mapping[str, ScoredGroup], sequences: Sequence[tuple[str, int]], *, size: LossNormalizer, rules: BatchRules
) -> tuple[TrainingBatch, BatchCounts]:
    """One packed row: prompt and response of each sequence, end to end, with everything the loss needs.

    Not valid are tokens that lack a finite log-probability that the objective needs (of the sampler, the teacher, the reference), and with
    `truncated="mask"` all tokens of a truncated response: their weight is 0. A response without a valid token takes no room in the row; where none is
    left the row is `dummy_batch`.

    Args:
        groups: by uid.
        sequences: (uid, index of the response) of each.
        size: of the whole optimizer step.

    Raises:
        ContractError: an unknown uid or response, a group without scores that are needed, more sequences than `size.num_responses`.
    """
    if len(sequences) > size.num_responses:
        raise ContractError(
            f"build_training_batch: {len(sequences)} sequences, but num_responses of the whole step is {size.num_responses}"
        )
    trained = {uid: _TrainedGroup(_group(groups, uid), rules) for uid, _ in sequences}
    rows: list[dict[str, Array]] = []
    counts = BatchCounts()
    for uid, index in sequences:
        group = trained[uid]
        if not 0 <= index < group.scored.group.num_responses:
            raise ContractError(
                f"build_training_batch: group {uid} has {group.scored.group.num_responses} responses, no number {index}"
            )
        is_valid, found = group.valid_tokens(index)
        counts += found
        if is_valid.any():
            rows.append(group.columns(index, is_valid, rules.token_weight(size, int(is_valid.sum()))))
    support_size = max((group.support_size for group in trained.values()), default=0)
    if not rows:
        return dummy_batch(rules.objective, support_size=support_size), counts
    columns: dict[str, Any] = {
        "teacher_logprobs": None,
        **{name: np.concatenate([row[name] for row in rows]) for name in rows[0]},
    }
    offsets = np.cumsum([0, *(len(row["token_ids"]) for row in rows)], dtype=np.int32)
    return TrainingBatch(**columns, sequence_offsets=offsets, support_size=support_size), counts


def dummy_batch(objective: ObjectiveSettings, *, support_size: int = 0) -> TrainingBatch:
    """One token of weight 0: what a rank without work runs, so that it joins every collective and adds exactly nothing.

    Args:
        support_size: 0 where no group says how large the support is; one token then stands for it.
    """
    ids, values = np.zeros(1, dtype=np.int64), np.zeros(1, dtype=np.float32)
    size = (support_size or 1) if objective.teacher_support is not None else 0
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
        teacher_logprobs=values if objective.uses_teacher else None,
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
            f"build_training_batch: a sequence is of group {uid}, which is not among the {len(groups)} groups given"
        )
    return groups[uid]


class _TrainedGroup:
    """A scored group, with what its responses share: advantages, and the scores that the objective needs."""

    def __init__(self, scored: ScoredGroup, rules: BatchRules) -> None:
        objective, verdicts = rules.objective, scored.verdicts
        self.scored = scored
        self._objective, self._masks_truncated = objective, rules.truncated == "mask"
        self._teacher = self._needed("teacher", scored.teacher_scores) if objective.uses_teacher else None
        self._reference = self._needed("reference", scored.reference_scores) if objective.uses_reference else None
        self.support_size = 0
        if objective.teacher_support is not None and self._teacher is not None:
            self.support_size = self._teacher.support_size
            if self.support_size == 0:
                raise ContractError(
                    f"build_training_batch: the teacher scores of group {scored.group.uid} have no support, "
                    f"but the objective asks for {objective.teacher_support!r}"
                )
        self._advantages = group_advantages(scored.rewards, objective.advantage_estimator)
        self._is_imitated = (
            None
            if objective.imitation_mask == "none"
            else imitated_responses(verdicts.rewards, objective.imitation_mask)
        )

    def valid_tokens(self, index: int) -> tuple[Array, BatchCounts]:
        """Boolean [N], the response's tokens to train on, and what was found."""
        group, tokens = self.scored.group, self.scored.group.response(index)
        has_behaviour = np.isfinite(group.behaviour_logprobs[tokens])
        has_teacher, has_reference = (
            np.ones_like(has_behaviour) if scores is None else self._is_finite(scores, tokens)
            for scores in (self._teacher, self._reference)
        )
        is_truncated = bool(group.is_truncated[index])
        is_valid = has_behaviour & has_teacher & has_reference & (not (is_truncated and self._masks_truncated))
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
        """The columns of one sequence, P + N positions. Position P - 1 + t predicts response token t; the last position predicts nothing."""
        group = self.scored.group
        tokens = group.response(index)
        token_ids = np.concatenate([group.prompt_ids, group.response_ids[tokens]]).astype(np.int64)
        size, first = len(token_ids), len(group.prompt_ids) - 1

        def shifted(values: Array | float) -> Array:
            column = np.zeros(size, dtype=np.float32)
            column[first : size - 1] = np.where(is_valid, values, 0)
            return column

        columns = {
            "token_ids": token_ids,
            "target_ids": np.append(token_ids[1:], 0),
            "position_ids": np.arange(size, dtype=np.int64),
            "behaviour_logprobs": shifted(group.behaviour_logprobs[tokens]),
            "advantages": np.full(size, self._advantages[index], dtype=np.float32),
            "weights": shifted(weight),
        }
        if self._teacher is not None:
            columns["teacher_logprobs"] = shifted(self._teacher.logprobs[tokens])
        if self._reference is not None:
            columns["reference_logprobs"] = shifted(self._reference.logprobs[tokens])
        if self._is_imitated is not None:
            columns["is_imitated"] = np.full(size, self._is_imitated[index])
        if self.support_size and self._teacher is not None:
            ids, logprobs, tail = _support_of(self._teacher, tokens)
            own_ids = np.zeros((size, self.support_size), np.int64)
            own_logprobs = np.zeros((size, self.support_size), np.float32)
            own_ids[first : size - 1] = ids
            own_logprobs[first : size - 1] = np.where(is_valid[:, None], logprobs, 0)
            columns |= {
                "support_ids": own_ids.ravel(),
                "teacher_support_logprobs": own_logprobs.ravel(),
                "teacher_tail_logprobs": shifted(tail),
            }
        return columns

    def _is_finite(self, scores: TeacherScores, tokens: slice) -> Array:
        is_finite: Array = np.isfinite(scores.logprobs[tokens])
        if self.support_size and scores is self._teacher:
            _, logprobs, tail = _support_of(scores, tokens)
            is_finite = is_finite & np.isfinite(logprobs).all(axis=1) & ~np.isnan(tail) & (tail < np.inf)
        return is_finite

    def _needed(self, name: str, scores: TeacherScores | None) -> TeacherScores:
        if scores is None:
            raise ContractError(
                f"build_training_batch: group {self.scored.group.uid} has no {name} scores, but the objective uses the {name}"
            )
        return scores


def _support_of(scores: TeacherScores, tokens: slice) -> tuple[Array, Array, Array]:
    """Ids and log-probabilities [N, K] of a response's tokens, and the tails [N]."""
    ids, logprobs, tail = scores.support_ids, scores.support_logprobs, scores.tail_logprobs
    assert ids is not None
    assert logprobs is not None
    assert tail is not None
    rows = slice(tokens.start * scores.support_size, tokens.stop * scores.support_size)
    return ids[rows].reshape(-1, scores.support_size), logprobs[rows].reshape(-1, scores.support_size), tail[tokens]
