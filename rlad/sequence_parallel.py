"""Sequence parallelism of the learner: several ranks share each packed row. Arithmetic without torch.

Shape letters: S positions of a row, N ranks that share it.
"""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import numpy as np

from rlad.training_batch import TrainingBatch

_NOT_PER_POSITION = ("sequence_offsets", "teacher_hidden_states")


def padded_row(batch: TrainingBatch, multiple: int) -> TrainingBatch:
    """Return the row with a length that is a multiple of N. The padding is a sequence of its own with weight 0.

    Hidden states of a teacher exist at trained positions only, so they get no padding.

    Args:
        batch: One row of packed sequences.
        multiple: Number of ranks that share the row, N.
    """
    size = len(batch.token_ids)
    padding = -size % multiple
    if not padding:
        return batch
    columns: dict[str, Any] = {}
    for field in fields(batch):
        column = getattr(batch, field.name)
        if isinstance(column, np.ndarray) and field.name not in _NOT_PER_POSITION:
            columns[field.name] = np.pad(column, (0, padding * (len(column) // size)))
    columns["position_ids"][size:] = np.arange(padding)
    offsets = np.append(batch.sequence_offsets, np.int32(size + padding))
    return replace(batch, **columns, sequence_offsets=offsets)


def slice_of(size: int, *, rank: int, ranks: int) -> slice:
    """Return the positions of a row that one of N ranks holds. The size of the row must be a multiple of N."""
    share = size // ranks
    return slice(rank * share, (rank + 1) * share)


def head_problem(sequence_parallel: int, *, heads: int, kv_heads: int) -> str | None:
    """Return why a student cannot be trained with `learner.sequence_parallel`, with the remedy; None if it can.

    Each rank computes attention for an equal share of the query heads. It gets its share of the key-value heads, or
    shares one with other ranks.

    Args:
        sequence_parallel: Number of ranks that share a row, N.
        heads: Query heads of a layer.
        kv_heads: Key-value heads of a layer.
    """

    def fits(ranks: int) -> bool:
        return heads % ranks == 0 and (kv_heads % ranks == 0 or ranks % kv_heads == 0)

    if fits(sequence_parallel):
        return None
    possible = [ranks for ranks in range(1, heads + 1) if fits(ranks)]
    return (
        f"learner.sequence_parallel must divide the student's {heads} attention heads, and divide its {kv_heads} "
        f"key-value heads or be a multiple of them; got {sequence_parallel}. "
        f"Set it to one of {', '.join(map(str, possible))}"
    )
