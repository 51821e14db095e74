"""Models of a run or an evaluation: resolved once, at versions that a continued run must find again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rlad.config import EvaluationSuite, RunConfig
from rlad.errors import ConfigError, ModelUnreachableError, RladError
from rlad.models.locations import PinnedModel, fetch_model, pin_model
from rlad.starters import is_missing_starter
from rlad.verifiers import reward_models

STUDENT = "student.path"


@dataclass(frozen=True, slots=True, kw_only=True)
class ResolvedModels:
    """Models of a run or an evaluation.

    Attributes:
        student: The student.
        frozen: Frozen models that the run starts, by pool.
        rewards: Reward models, by task.
    """

    student: PinnedModel
    frozen: Mapping[str, PinnedModel] = field(default_factory=dict)
    rewards: Mapping[str, PinnedModel] = field(default_factory=dict)

    def by_setting(self) -> dict[str, PinnedModel]:
        """Return the models by the setting that names them."""
        return {
            STUDENT: self.student,
            **{_setting(pool): model for pool, model in self.frozen.items()},
            **{f"verifiers.{task}.path": model for task, model in self.rewards.items()},
        }

    def verifiers(self, config: RunConfig | EvaluationSuite) -> dict[str, Any]:
        """Return the verifiers of a configuration, with the locations of reward models as their paths."""
        located = {
            task: model.model_copy(update={"path": self.rewards[task].location})
            for task, model in reward_models(config.verifiers).items()
        }
        return {**config.verifiers, **located}


def resolve_models(
    config: RunConfig | EvaluationSuite, recorded: Mapping[str, PinnedModel] | None = None
) -> ResolvedModels:
    """Resolve the models of a run or an evaluation.

    Args:
        config: Its configuration.
        recorded: Models that a continued run was started with, by setting.

    Raises:
        PlanError: A model does not exist.
        ConfigError: A model of a continued run has another version than at its start.
        RladError: A hub, store or registry refuses access, or cannot be reached.
    """
    known = recorded or {}
    frozen = {}
    if isinstance(config, RunConfig):
        frozen = config.frozen_models if config.needs_teacher else config.scoring_pools
    return ResolvedModels(
        student=_resolve(config.student.path, STUDENT, known),
        frozen={pool: _resolve(model.path, _setting(pool), known) for pool, model in frozen.items()},
        rewards={
            task: _resolve(model.path, f"verifiers.{task}.path", known)
            for task, model in reward_models(config.verifiers).items()
        },
    )


def _setting(pool: str) -> str:
    return f"{pool.replace('teacher-', 'teachers.', 1)}.path"


def _resolve(text: str, setting: str, recorded: Mapping[str, PinnedModel]) -> PinnedModel:
    before = recorded.get(setting)
    try:
        model = pin_model(text)
    except ModelUnreachableError:
        if before is None:
            raise
        return before  # its version is known, and a node may have its files
    if before is None or model.version == before.version:
        return model
    remedy = f"continue with {setting}={before.label}" if before.version is not None else "restore the former model"
    raise ConfigError(
        f"{setting}: {before.reference} has changed since the run was started: it was at "
        f"{before.version or before.location}, and is at {model.version or model.location} now; {remedy}, or start "
        "another run"
    )


class ModelFiles:
    """Configuration and tokenizer of models on this machine, looked up once each. Weights are not downloaded."""

    def __init__(self) -> None:
        self._found: dict[str, Path | RladError] = {}

    def directory(self, text: str) -> Path:
        """Return a directory with configuration and tokenizer of a model.

        Raises:
            RladError: The model does not exist or cannot be reached: the same error on every call.
        """
        if text not in self._found:
            try:
                self._found[text] = fetch_model(pin_model(text).location, weights=False)
            except RladError as error:
                self._found[text] = error
        found = self._found[text]
        if isinstance(found, Path):
            return found
        raise found

    def is_absent(self, text: str) -> bool:
        """Return whether a model cannot be examined here, although a run may find it: an untrained starter, or a model
        whose hub or store cannot be reached."""
        if is_missing_starter(text):
            return True
        try:
            self.directory(text)
        except RladError as error:
            return isinstance(error, ModelUnreachableError)
        return False
