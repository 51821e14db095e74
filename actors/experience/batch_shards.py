"""What the broker hands to the learner's ranks: which responses to train on, and references to their columns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rlad.contracts import Columns, RolloutGroup, ScoredGroup, TeacherScores, Verdicts
from rlad.packing import LossNormalizer
from rlad.teacher.mixture import mix_teacher_scores

# A `ray.ObjectRef` of a record's columns. Ray's reference type is not subscripted here because it holds a plain mapping of arrays.
ColumnsRef = Any


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightedScores:
    """One teacher's scores of a group: a reference to the columns of its `TeacherScores`, and the weight of its probabilities in the mixture of all."""

    weight: float
    scores: ColumnsRef


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupRefs:
    """One scored group: references to the columns of its `RolloutGroup` and of the `TeacherScores` that the objective needs, and its verdicts.

    Attributes:
        verdicts: themselves: a few bytes a response, less than what a reference to them costs everybody who holds it.
        teacher_scores: of each of its teachers; empty where the objective has none.
        reference_scores: the frozen reference policy's; None where the objective has none.
    """

    group: ColumnsRef
    verdicts: Verdicts
    teacher_scores: tuple[WeightedScores, ...]
    reference_scores: ColumnsRef | None = None

    @property
    def all_refs(self) -> list[ColumnsRef]:
        """Every reference, in the order in which `scored_group` takes what is behind them."""
        references = [] if self.reference_scores is None else [self.reference_scores]
        return [self.group, *(each.scores for each in self.teacher_scores), *references]

    def scored_group(self, columns: Sequence[Columns]) -> ScoredGroup:
        """The group from the columns behind `all_refs`, with the scores of several teachers mixed into those of one.

        Raises:
            ContractError: columns that contradict each other.
        """
        group, *scores = columns
        reference = None if self.reference_scores is None else TeacherScores.from_columns(scores.pop())
        of_teachers = [TeacherScores.from_columns(each) for each in scores]
        weighted = [(each.weight, found) for each, found in zip(self.teacher_scores, of_teachers, strict=True)]
        return ScoredGroup(
            group=RolloutGroup.from_columns(group),
            verdicts=self.verdicts,
            teacher_scores=mix_teacher_scores(weighted) if weighted else None,
            reference_scores=reference,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchShard:
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
    size: LossNormalizer
    micro_batches: list[list[tuple[str, int]]]
    groups: dict[str, GroupRefs]
