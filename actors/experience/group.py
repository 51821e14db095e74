"""The record of one group that is ready for training: the broker plans with it, the learner fetches its columns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from actors.messages import GroupSummary
from rlad.contracts import Columns, RolloutGroup, ScoredGroup, TeacherScores, Verdicts
from rlad.teacher.mixture import mix_teacher_scores

# A `ray.ObjectRef` of a record's columns. Ray's reference type is not subscripted here because it holds a plain mapping
# of arrays.
ColumnsRef = Any


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightedScores:
    """Scores of one teacher.

    Attributes:
        weight: Weight of the teacher's probabilities in the mixture of all teachers of the group.
        scores: Reference to the columns of its `TeacherScores`.
    """

    weight: float
    scores: ColumnsRef


@dataclass(frozen=True, slots=True, kw_only=True)
class ExperienceGroup:
    """A group with its verdicts, rewards and references to its columns. It holds no token data.

    Attributes:
        summary: Identity and sizes.
        columns: Reference to the columns of the `RolloutGroup`.
        verdicts: By value: a few bytes a response, less than a reference to them costs each of its holders.
        rewards: Shaped reward of each response: the verifier's, less the overlong penalty. Advantages are computed from
            these.
        teacher_scores: Scores of each teacher of the group; empty if the objective uses no teacher.
        reference_scores: Reference to the columns of the reference policy's `TeacherScores`; None without one.
    """

    summary: GroupSummary
    columns: ColumnsRef
    verdicts: Verdicts
    rewards: tuple[float, ...]
    teacher_scores: tuple[WeightedScores, ...] = ()
    reference_scores: ColumnsRef | None = None

    @property
    def uid(self) -> str:
        return self.summary.uid

    @property
    def attempt(self) -> int:
        return self.summary.attempt

    @property
    def all_refs(self) -> list[ColumnsRef]:
        """All references, in the order in which `scored_group` takes the columns behind them."""
        references = [] if self.reference_scores is None else [self.reference_scores]
        return [self.columns, *(each.scores for each in self.teacher_scores), *references]

    def scored_group(self, columns: Sequence[Columns]) -> ScoredGroup:
        """Assemble the group from the columns behind `all_refs`. Scores of several teachers become those of their
        mixture.

        Raises:
            ContractError: The columns contradict each other.
        """
        group, *scores = columns
        reference = None if self.reference_scores is None else TeacherScores.from_columns(scores.pop())
        teacher_scores = [TeacherScores.from_columns(each) for each in scores]
        weighted = [(each.weight, found) for each, found in zip(self.teacher_scores, teacher_scores, strict=True)]
        return ScoredGroup(
            group=RolloutGroup.from_columns(group),
            verdicts=self.verdicts,
            rewards=np.array(self.rewards, np.float32),
            teacher_scores=mix_teacher_scores(weighted) if weighted else None,
            reference_scores=reference,
        )
