"""Check of a run whose teacher sends hidden states."""

from __future__ import annotations

from collections.abc import Mapping

from rlad.config.objectives import ObjectiveConfig
from rlad.config.teachers import RemoteTeacherConfig, ServiceTeacherConfig, TeacherConfig


def require_use_of_hidden_states(
    objective: ObjectiveConfig, teachers: Mapping[str, TeacherConfig | ServiceTeacherConfig | RemoteTeacherConfig]
) -> None:
    """Refuse hidden states that the objective does not need, or that belong to several output layers.

    Args:
        objective: Objective of the run.
        teachers: Teachers by id.

    Raises:
        ValueError: With the reason.
    """
    if not any(isinstance(each, TeacherConfig) and each.send == "hidden_states" for each in teachers.values()):
        return
    if objective.teacher_support != "full":
        raise ValueError(
            "teacher.send 'hidden_states' requires objective.estimator 'full', because other estimators need a few "
            f"log-probabilities a token; got objective {objective.name!r}. Set teacher.send to logprobs"
        )
    if len(teachers) > 1:
        raise ValueError(
            "teacher.send 'hidden_states' requires a single teacher, because the learner holds one output layer; got "
            f"{', '.join(teachers)}. Set send to logprobs, with engine transformers"
        )
