"""Verifiers: rewards of responses. One module per verifier, registered only in the union `VerifierConfig`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field, TypeAdapter, ValidationError

from rlad.credentials import redact
from rlad.errors import ConfigError
from rlad.verifiers.code_tests import CodeTestsVerifierConfig
from rlad.verifiers.countdown import CountdownVerifierConfig
from rlad.verifiers.knights_knaves import KnightsKnavesVerifierConfig
from rlad.verifiers.math_answer import MathAnswerVerifierConfig
from rlad.verifiers.multiple_choice import MultipleChoiceVerifierConfig
from rlad.verifiers.python_function import PythonFunctionVerifierConfig
from rlad.verifiers.reasoning_gym import ReasoningGymVerifierConfig
from rlad.verifiers.reward_model import RewardModelVerifierConfig
from rlad.verifiers.verdict import ComparesAnswers, GivesAnswer, StatesAnswer, Verdict, Verifier

VerifierConfig = Annotated[
    KnightsKnavesVerifierConfig
    | MathAnswerVerifierConfig
    | CountdownVerifierConfig
    | MultipleChoiceVerifierConfig
    | CodeTestsVerifierConfig
    | ReasoningGymVerifierConfig
    | PythonFunctionVerifierConfig
    | RewardModelVerifierConfig,
    Field(discriminator="name"),
]

_ADAPTER: TypeAdapter[VerifierConfig] = TypeAdapter(VerifierConfig)


def build_verifier(spec: VerifierConfig | Mapping[str, Any]) -> Verifier:
    """Build the verifier of the settings, for example `{"name": "knights_knaves"}`.

    Raises:
        ConfigError: An unknown name, an unknown key, or an invalid value.
    """
    return (read_verifier(spec) if isinstance(spec, Mapping) else spec).build()


def read_verifier(settings: Mapping[str, Any]) -> VerifierConfig:
    """Validate the settings of a verifier, for example `{"name": "knights_knaves"}`.

    Raises:
        ConfigError: An unknown name, an unknown key, or an invalid value.
    """
    try:
        return _ADAPTER.validate_python(settings)
    except ValidationError as error:
        problems = "; ".join(
            redact(f"{'.'.join(map(str, problem['loc']))}: {problem['msg']} (got {problem['input']!r})")
            for problem in error.errors()
        )
        raise ConfigError(f"invalid verifier settings: {problems}") from error


def reward_models(verifiers: Mapping[str, VerifierConfig]) -> dict[str, RewardModelVerifierConfig]:
    """Return the verifiers that are reward models, by task. Each is served by its own pool."""
    return {task: verifier for task, verifier in verifiers.items() if isinstance(verifier, RewardModelVerifierConfig)}


__all__ = [
    "CodeTestsVerifierConfig",
    "ComparesAnswers",
    "CountdownVerifierConfig",
    "GivesAnswer",
    "KnightsKnavesVerifierConfig",
    "MathAnswerVerifierConfig",
    "MultipleChoiceVerifierConfig",
    "PythonFunctionVerifierConfig",
    "ReasoningGymVerifierConfig",
    "RewardModelVerifierConfig",
    "StatesAnswer",
    "Verdict",
    "Verifier",
    "VerifierConfig",
    "build_verifier",
    "read_verifier",
    "reward_models",
]
