"""What the broker hands to the learner's ranks: which responses to train on, and references to their columns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rlad.packing import UpdateSize

# A `ray.ObjectRef` of a record's columns. Ray's reference type is not subscripted here because it holds a plain mapping of arrays.
ColumnsRef = Any


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupRefs:
    """One scored group: references to the columns of its `RolloutGroup` and `Verdicts`, and to the `TeacherScores` that the objective needs.

    Attributes:
        teacher_scores: the teacher's; None where the objective has none.
        reference_scores: the frozen reference policy's; None where the objective has none.
    """

    group: ColumnsRef
    verdicts: ColumnsRef
    teacher_scores: ColumnsRef | None
    reference_scores: ColumnsRef | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A piece of one optimizer update, for one rank.

    Every rank gets the same number of micro-batches in a part, because ZeRO reduces gradients in each backward pass and all ranks must take part.

    Attributes:
        step: training step.
        update: optimizer update within the step.
        index: part within the step, counted over its updates.
        ends_update: the optimizer steps after this part.
        ends_step: the last part of the step.
        size: of the whole update over all ranks: the normaliser.
        micro_batches: for each micro-batch, its sequences as (group uid, response index); an empty list is a dummy batch.
        groups: the groups that the micro-batches name.
    """

    step: int
    update: int
    index: int
    ends_update: bool
    ends_step: bool
    size: UpdateSize
    micro_batches: list[list[tuple[str, int]]]
    groups: dict[str, GroupRefs]
