"""How a step's responses become micro-batches: which of them share a packed row, and what that row holds.

Shape letters: M sequences, P prompt tokens, N tokens of one response, S tokens of a packed row.
"""

from __future__ import annotations

import bisect
import heapq
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from rlad.advantages import group_advantages
from rlad.contracts import ScoredGroup, TrainingBatch
from rlad.errors import ContractError

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
        raise ContractError(f"plan_microbatches: token_budget {token_budget}, ranks {ranks} and every length must be at least 1, got {list(lengths)}")
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
        missing_behaviour_tokens: response tokens without a finite behaviour log-probability.
    """

    responses: int = 0
    truncated_responses: int = 0
    response_tokens: int = 0
    trained_tokens: int = 0
    missing_teacher_tokens: int = 0
    missing_behaviour_tokens: int = 0

    def __add__(self, other: BatchCounts) -> BatchCounts:
        return BatchCounts(**{name: mine + theirs for name, mine, theirs in zip(self.__slots__, astuple(self), astuple(other), strict=True)})


def build_training_batch(
    groups: Mapping[str, ScoredGroup],
    sequences: Sequence[tuple[str, int]],
    *,
    num_responses: int,
    truncated: Literal["keep", "mask"],
    uses_teacher: bool,
) -> tuple[TrainingBatch, BatchCounts]:
    """One packed row: prompt and response of each sequence, end to end, with everything the loss needs.

    A token weighs 1 / (num_responses * valid tokens of its response). Not valid are tokens without a finite behaviour log-probability, or without a
    finite teacher log-probability where the teacher is used, and with `truncated="mask"` all tokens of a truncated response. A response without a
    valid token takes no room in the row; where none is left the row is `dummy_batch`.

    Args:
        groups: by uid.
        sequences: (uid, index of the response) of each.
        num_responses: responses of the whole optimizer step over all ranks, whatever becomes of them.
        truncated: whether responses that hit the token budget are trained on.
        uses_teacher: whether the objective needs the teacher's log-probabilities.

    Raises:
        ContractError: an unknown uid or response, a group without teacher scores where they are needed, more sequences than `num_responses`.
    """
    if len(sequences) > num_responses:
        raise ContractError(f"build_training_batch: {len(sequences)} sequences, but num_responses of the whole step is {num_responses}")
    advantages = {uid: group_advantages(_group(groups, uid).verdicts.rewards) for uid, _ in sequences}
    rows: list[dict[str, Array]] = []
    counts = BatchCounts()
    for uid, index in sequences:
        scored = groups[uid]
        if not 0 <= index < scored.group.num_responses:
            raise ContractError(f"build_training_batch: group {uid} has {scored.group.num_responses} responses, no number {index}")
        is_valid, found = _valid_tokens(scored, index, truncated=truncated, uses_teacher=uses_teacher)
        counts += found
        if is_valid.any():
            rows.append(_sequence_columns(scored, index, is_valid, float(advantages[uid][index]), num_responses, uses_teacher))
    if not rows:
        return dummy_batch(uses_teacher), counts
    columns = {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}
    offsets = np.cumsum([0, *(len(row["token_ids"]) for row in rows)], dtype=np.int32)
    return TrainingBatch.from_columns({"teacher_logprobs": None, **columns, "sequence_offsets": offsets}), counts


def dummy_batch(uses_teacher: bool) -> TrainingBatch:
    """One token of weight 0: what a rank without work runs, so that it joins every collective and adds exactly nothing."""
    ids = np.zeros(1, dtype=np.int64)
    values = np.zeros(1, dtype=np.float32)
    return TrainingBatch(
        token_ids=ids,
        target_ids=ids,
        position_ids=ids,
        sequence_offsets=np.array([0, 1], dtype=np.int32),
        behaviour_logprobs=values,
        teacher_logprobs=values if uses_teacher else None,
        advantages=values,
        weights=values,
    )


def _group(groups: Mapping[str, ScoredGroup], uid: str) -> ScoredGroup:
    if uid not in groups:
        raise ContractError(f"build_training_batch: a sequence is of group {uid}, which is not among the {len(groups)} groups given")
    return groups[uid]


def _valid_tokens(scored: ScoredGroup, index: int, *, truncated: Literal["keep", "mask"], uses_teacher: bool) -> tuple[Array, BatchCounts]:
    """Boolean [N], the response's tokens to train on, and what was found."""
    tokens = scored.group.response(index)
    has_behaviour = np.isfinite(scored.group.behaviour_logprobs[tokens])
    has_teacher = np.ones_like(has_behaviour)
    if uses_teacher:
        if scored.teacher_scores is None:
            raise ContractError(f"build_training_batch: group {scored.group.uid} has no teacher scores, but the objective uses the teacher")
        has_teacher = np.isfinite(scored.teacher_scores.logprobs[tokens])
    is_truncated = bool(scored.group.is_truncated[index])
    is_valid = has_behaviour & has_teacher & (truncated == "keep" or not is_truncated)
    return is_valid, BatchCounts(
        responses=1,
        truncated_responses=int(is_truncated),
        response_tokens=len(is_valid),
        trained_tokens=int(is_valid.sum()),
        missing_teacher_tokens=int((~has_teacher).sum()),
        missing_behaviour_tokens=int((~has_behaviour).sum()),
    )


def _sequence_columns(scored: ScoredGroup, index: int, is_valid: Array, advantage: float, num_responses: int, uses_teacher: bool) -> dict[str, Array]:
    """The columns of one sequence, P + N positions. Position P - 1 + t predicts response token t; the last position predicts nothing."""
    group = scored.group
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
        "advantages": np.full(size, advantage, dtype=np.float32),
        "weights": shifted(1 / (num_responses * int(is_valid.sum()))),
    }
    if uses_teacher and scored.teacher_scores is not None:
        columns["teacher_logprobs"] = shifted(scored.teacher_scores.logprobs[tokens])
    return columns
