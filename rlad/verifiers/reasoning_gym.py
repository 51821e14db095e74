"""Any task of reasoning-gym, by its own scorer: reward 1 for a full score, or the score itself.

reasoning-gym is an optional package (the extra `reasoning-gym`). Some of its scorers parse the response with sympy, which evaluates it as Python (countdown,
puzzle24, the integration and polynomial tasks), and they run in the verifier pool's processes with the pool's rights: where that matters, use
`countdown` of this package, or tasks with plain answers.
"""

from __future__ import annotations

import difflib
import importlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from rlad.contracts import Outcome
from rlad.errors import ConfigError, DataError
from rlad.verifiers.response_text import after_thinking, last_answer_block
from rlad.verifiers.verdict import UNPARSEABLE, Verdict

# JSON knows neither tuples nor keys that are no text, and scorers tell them apart.
_TUPLE, _PAIRS = "__tuple__", "__pairs__"


class ReasoningGymVerifierConfig(BaseModel):
    """Settings of the verifier of one reasoning-gym task. The answer is read from the last `<answer>` tags after the thinking."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Literal["reasoning_gym"]
    dataset: str = Field(description="Name of the task in reasoning-gym, for example `chain_sum`.")
    scoring: Literal["binary", "graded"] = Field(
        "binary",
        description="`binary`: 1 for a score of exactly 1, else 0. `graded`: the score itself, which for many tasks is above 0 for a wrong answer.",
    )

    def build(self) -> ReasoningGymVerifier:
        """
        Raises:
            ConfigError: reasoning-gym is not installed, or has no such task.
        """
        create_reasoning_gym_dataset(
            self.dataset, {}
        )  # and what it loads does not count against the first response's deadline
        return ReasoningGymVerifier(dataset=self.dataset, scoring=self.scoring)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReasoningGymVerifier:
    """Judges by `score_answer` of a reasoning-gym task.

    Attributes:
        dataset: name of the task.
        scoring: whether a partial score is worth anything.
    """

    dataset: str
    scoring: Literal["binary", "graded"]

    def verify(self, response_text: str, answer: str) -> Verdict:
        """Judge a response.

        Args:
            answer: JSON of the task's entry, as `encode_entry` writes it; `answer` and `metadata` are required.

        Raises:
            DataError: `answer` is no entry, or one of another task.
            ConfigError: the task does not take the entry's settings. Whatever else its scorer raises passes through.
        """
        entry = decode_entry(answer)
        if entry.get("dataset", self.dataset) != self.dataset:
            raise DataError(
                f"the prompt is of reasoning-gym's task {entry['dataset']!r}, its verifier is that of {self.dataset!r}"
            )
        given = self.answer_of(response_text)
        if given is None:
            return UNPARSEABLE
        scorer = _dataset_of_settings(self.dataset, json.dumps(entry.get("settings", {}), sort_keys=True))
        try:
            score = float(scorer.score_answer(answer=given, entry=entry))
        except ValueError:  # not every scorer expects text that is no number
            return UNPARSEABLE
        is_correct = score == 1.0
        return Verdict(
            reward=score if self.scoring == "graded" else float(is_correct),
            outcome=Outcome.CORRECT if is_correct else Outcome.WRONG,
        )

    def answer_of(self, response_text: str) -> str | None:
        """What the last `<answer>` tags enclose, as it is: only the task knows what else is equal."""
        spoken = after_thinking(response_text)
        return None if spoken is None else last_answer_block(spoken)


def encode_entry(entry: Mapping[str, Any], *, dataset: str, settings: Mapping[str, Any]) -> str:
    """What scoring an entry of a task needs, as the text of a prompt's answer: its answer, its metadata and the task's settings.

    Raises:
        DataError: the entry holds something that cannot be written as JSON and read back equal.
    """
    kept = {"answer": entry["answer"], "metadata": entry["metadata"], "dataset": dataset, "settings": dict(settings)}
    try:
        text = json.dumps(_tagged(kept))
    except (TypeError, ValueError) as error:
        raise DataError(f"an entry of reasoning-gym's task {dataset!r} cannot be written as JSON: {error}") from error
    if decode_entry(text) != kept:
        raise DataError(
            f"an entry of reasoning-gym's task {dataset!r} does not come back from JSON as it was: {text[:200]}"
        )
    return text


def decode_entry(text: str) -> dict[str, Any]:
    """The entry that `encode_entry` wrote, tuples and keys as they were.

    Raises:
        DataError: it is none.
    """
    try:
        entry = json.loads(text, object_hook=_untagged)
    except ValueError as error:
        raise DataError(
            f"the answer of a reasoning-gym prompt is JSON with `answer` and `metadata`, got {text[:200]!r}"
        ) from error
    if not isinstance(entry, dict) or not {"answer", "metadata"} <= entry.keys():
        raise DataError(
            f"the answer of a reasoning-gym prompt is JSON with `answer` and `metadata`, got {text[:200]!r}"
        )
    return entry


def create_reasoning_gym_dataset(name: str, settings: Mapping[str, Any]) -> Any:
    """A task of reasoning-gym with these settings.

    Raises:
        ConfigError: reasoning-gym is not installed, has no such task, or the task refuses the settings.
    """
    try:
        # Its part that registers all tasks, too.
        gym, factory = importlib.import_module("reasoning_gym"), importlib.import_module("reasoning_gym.factory")
    except ImportError as error:
        raise ConfigError(
            f"reasoning-gym cannot be imported ({error}): install rlad with its extra, `pip install 'rlad[reasoning-gym]'`"
        ) from error
    known = sorted(
        factory.DATASETS.keys() - {"composite"}
    )  # a mixture of tasks, each of which would need a verifier of its own
    if name not in known:
        nearest = difflib.get_close_matches(name, known, n=3, cutoff=0.4) or known[:3]
        raise ConfigError(f"reasoning-gym has {len(known)} tasks, but no {name!r}; the nearest: {', '.join(nearest)}")
    try:
        return gym.create_dataset(name, **settings)
    except (TypeError, ValueError, AssertionError) as error:
        raise ConfigError(
            f"reasoning-gym's task {name!r} does not take the settings {dict(settings)}: {error}"
        ) from error


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
