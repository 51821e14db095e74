"""Verifier of any reasoning-gym task by the task's own scorer: reward 1 for a full score, or the score itself.

reasoning-gym is an optional package (the extra `reasoning-gym`). Some of its scorers parse the response with sympy,
which evaluates it as Python (countdown, puzzle24, the integration and polynomial tasks). They run in the verifier
pool's processes with the pool's permissions. If that is a risk, use `countdown` of this package, or tasks with plain
answers.
"""

from __future__ import annotations

import difflib
import importlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

from pydantic import Field

from rlad.contracts import Outcome
from rlad.errors import ConfigError, DataError
from rlad.verifiers.response_tags import TaggedVerifierConfig
from rlad.verifiers.response_text import after_thinking, last_answer_block
from rlad.verifiers.verdict import UNPARSEABLE, Verdict

# JSON supports neither tuples nor non-text keys, which scorers distinguish.
_TUPLE, _PAIRS = "__tuple__", "__pairs__"


class ReasoningGymVerifierConfig(TaggedVerifierConfig):
    """Settings of the verifier of one reasoning-gym task.

    The answer is read from the last `<answer>` tags after the thinking.
    """

    name: Literal["reasoning_gym"]
    dataset: str = Field(description="Name of the task in reasoning-gym, for example `chain_sum`.")
    scoring: Literal["binary", "graded"] = Field(
        "binary",
        description="`binary`: reward 1 for a score of exactly 1, else 0. `graded`: the score itself, which for many "
        "tasks is above 0 for a wrong answer.",
    )

    def build(self) -> ReasoningGymVerifier:
        """Return the verifier.

        Raises:
            ConfigError: reasoning-gym is not installed, or has no such task.
        """
        # Also loads the task now, so that loading does not count against the first deadline.
        create_reasoning_gym_dataset(self.dataset, {})
        return ReasoningGymVerifier(dataset=self.dataset, scoring=self.scoring)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReasoningGymVerifier:
    """Verifier that calls `score_answer` of a reasoning-gym task.

    Attributes:
        dataset: Name of the task.
        scoring: `graded` rewards partial scores, `binary` does not.
    """

    dataset: str
    scoring: Literal["binary", "graded"]

    def verify(self, response_text: str, answer: str) -> Verdict:
        """Verify a response. Exceptions of the scorer other than ValueError propagate.

        Args:
            response_text: The response, without its prompt.
            answer: JSON of the task's entry, as written by `encode_entry`; `answer` and `metadata` are required.

        Raises:
            DataError: `answer` is not an entry, or belongs to another task.
            ConfigError: The task rejects the entry's settings.
        """
        entry = decode_entry(answer)
        if entry.get("dataset", self.dataset) != self.dataset:
            raise DataError(
                f"reasoning_gym: the prompt belongs to task {entry['dataset']!r}, but its verifier is that of "
                f"{self.dataset!r}; correct `dataset` of the verifier"
            )
        response_answer = self.answer_of(response_text)
        if response_answer is None:
            return UNPARSEABLE
        scorer = _dataset_of_settings(self.dataset, json.dumps(entry.get("settings", {}), sort_keys=True))
        try:
            score = float(scorer.score_answer(answer=response_answer, entry=entry))
        except ValueError:  # some scorers fail on text that is not a number
            return UNPARSEABLE
        is_correct = score == 1.0
        return Verdict(
            reward=score if self.scoring == "graded" else float(is_correct),
            outcome=Outcome.CORRECT if is_correct else Outcome.WRONG,
        )

    def answer_of(self, response_text: str) -> str | None:
        """Return the content of the last `<answer>` tags verbatim. Only the task knows which answers are equal."""
        text = after_thinking(response_text)
        return None if text is None else last_answer_block(text)


def encode_entry(entry: Mapping[str, Any], *, dataset: str, settings: Mapping[str, Any]) -> str:
    """Encode the answer, metadata and task settings of an entry as the answer of a prompt record.

    Raises:
        DataError: The entry holds a value that does not survive a round trip through JSON.
    """
    kept = {"answer": entry["answer"], "metadata": entry["metadata"], "dataset": dataset, "settings": dict(settings)}
    try:
        text = json.dumps(_tagged(kept))
    except (TypeError, ValueError) as error:
        raise DataError(f"an entry of reasoning-gym's task {dataset!r} cannot be written as JSON: {error}") from error
    if decode_entry(text) != kept:
        raise DataError(
            f"an entry of reasoning-gym's task {dataset!r} does not survive a round trip through JSON: {text[:200]}"
        )
    return text


def decode_entry(text: str) -> dict[str, Any]:
    """Decode an entry that `encode_entry` wrote, including tuples and non-text keys.

    Raises:
        DataError: The text is not an entry.
    """
    try:
        entry = json.loads(text, object_hook=_untagged)
    except ValueError as error:
        raise DataError(
            f"the answer of a reasoning-gym prompt must be JSON with `answer` and `metadata`, got {text[:200]!r}"
        ) from error
    if not isinstance(entry, dict) or not {"answer", "metadata"} <= entry.keys():
        raise DataError(
            f"the answer of a reasoning-gym prompt must be JSON with `answer` and `metadata`, got {text[:200]!r}"
        )
    return entry


def create_reasoning_gym_dataset(name: str, settings: Mapping[str, Any]) -> Any:
    """Create the dataset of a reasoning-gym task.

    Raises:
        ConfigError: reasoning-gym is not installed, has no such task, or the task rejects the settings.
    """
    try:
        # The factory module registers all tasks.
        gym, factory = importlib.import_module("reasoning_gym"), importlib.import_module("reasoning_gym.factory")
    except ImportError as error:
        raise ConfigError(
            f"reasoning-gym cannot be imported ({error}); install it with `pip install 'rlad[reasoning-gym]'`"
        ) from error
    # `composite` is a mixture of tasks, each of which would need its own verifier.
    known = sorted(factory.DATASETS.keys() - {"composite"})
    if name not in known:
        nearest = difflib.get_close_matches(name, known, n=3, cutoff=0.4) or known[:3]
        raise ConfigError(
            f"reasoning-gym has no task {name!r} among its {len(known)}; did you mean {', '.join(nearest)}?"
        )
    try:
        return gym.create_dataset(name, **settings)
    except (TypeError, ValueError, AssertionError) as error:
        raise ConfigError(f"reasoning-gym's task {name!r} rejects the settings {dict(settings)}: {error}") from error


@lru_cache(maxsize=64)
def _dataset_of_settings(name: str, settings: str) -> Any:
    return create_reasoning_gym_dataset(name, json.loads(settings))


def _tagged(value: Any) -> Any:
    match value:
        case tuple():
            return {_TUPLE: [_tagged(item) for item in value]}
        case list():
            return [_tagged(item) for item in value]
        case dict() if all(isinstance(key, str) for key in value):
            return {key: _tagged(item) for key, item in value.items()}
        case dict():
            return {_PAIRS: [[_tagged(key), _tagged(item)] for key, item in value.items()]}
    return value


def _untagged(value: dict[str, Any]) -> Any:
    if value.keys() == {_TUPLE}:
        return tuple(value[_TUPLE])
    if value.keys() == {_PAIRS}:
        return dict(value[_PAIRS])
    return value
