"""Columns of a packed row as tensors, at the positions that a rank trains on."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from rlad.errors import EngineError
from rlad.models.hidden_arrays import to_tensor
from rlad.training_batch import TrainingBatch


def selected(positions: Tensor, column: Any, width: int = 0) -> Tensor:
    """Return a column of a batch at the given positions, on their device.

    Args:
        positions: Positions of the row, int64 [N].
        column: NumPy array, [S], or [S * width] if `width` is not 0.
        width: Number of entries per position; 0 for a single one without a dimension of its own.

    Returns:
        [N], or [N, width] if `width` is not 0.
    """
    values = torch.from_numpy(column).to(positions.device, non_blocking=True)
    return (values.view(-1, width) if width else values).index_select(0, positions)


def selected_optional(positions: Tensor, column: Any, width: int = 0) -> Tensor | None:
    """Return `selected`, or None if the batch does not have the column."""
    return None if column is None else selected(positions, column, width)


def trained_hidden_states(
    batch: TrainingBatch, own: slice, teacher_weight: Tensor | None, device: torch.device
) -> Tensor | None:
    """Return the teacher's hidden states at the trained positions of a slice of the row.

    Args:
        batch: The row.
        own: The slice.
        teacher_weight: Output layer of the teacher, [V, G]; None for a teacher that sends log-probabilities.
        device: Device of the result.

    Returns:
        [N, G] in the dtype of the output layer, or None without one. A slice without trained positions gets one of
        zeros.

    Raises:
        EngineError: The batch has trained positions, but no hidden states.
    """
    if teacher_weight is None:
        return None
    count = int(np.count_nonzero(batch.weights[own]))
    if not count:
        return teacher_weight.new_zeros((1, teacher_weight.shape[1]), device=device)
    if batch.teacher_hidden_states is None:
        raise EngineError("the batch has no hidden states of the teacher, but the learner has an output layer for it")
    first = int(np.count_nonzero(batch.weights[: own.start]))
    rows = batch.teacher_hidden_states.reshape(-1, batch.hidden_size)[first : first + count]
    return to_tensor(rows).to(device, teacher_weight.dtype, non_blocking=True)
