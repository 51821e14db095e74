"""Verifier of any reasoning-gym task by the task's own scorer: reward 1 for a full score, or the score itself.

reasoning-gym is an optional package (the extra `reasoning-gym`). Some of its scorers evaluate the answer as Python
(`eval` or sympy's parser). All of them therefore run inside the sandbox, where `eval` and the parser accept literals
and formulas only (see `rlad.sandbox.scripts.reasoning_gym_scoring`).
"""

from __future__ import annotations

import atexit
import difflib
import importlib
import json
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from rlad.contracts import Outcome
from rlad.errors import ConfigError, DataError, EngineError
from rlad.sandbox.limits import SandboxLimits
from rlad.sandbox.scripts import reasoning_gym_scoring
from rlad.sandbox.scripts.reasoning_gym_scoring import PAIRS, TUPLE, untagged
from rlad.sandbox.session import SandboxResult, SandboxSession
from rlad.verifiers.response_tags import TaggedVerifierConfig
from rlad.verifiers.response_text import after_thinking, last_answer_block
from rlad.verifiers.verdict import TIMEOUT, UNPARSEABLE, Verdict

# Deadline of the start of the scoring process, which imports reasoning-gym. In seconds.
_START_TIMEOUT_S = 120.0


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
    timeout_s: float = Field(
        8.0,
        gt=0,
        description="Wall time and CPU time of the scorer for one response, in seconds. Keep it below "
        "`verifier_pool.timeout_s`.",
    )
    memory_mib: int = Field(1024, ge=256, description="Address space of the scorer, in MiB.")

    def build(self) -> ReasoningGymVerifier:
        """Return the verifier.

        Raises:
            ConfigError: reasoning-gym is not installed, or has no such task.
        """
        # Also loads the task now, so that loading does not count against the first deadline.
        create_reasoning_gym_dataset(self.dataset, {})
        limits = SandboxLimits(
            wall_s=self.timeout_s, cpu_s=max(1, math.ceil(self.timeout_s)), memory_mib=self.memory_mib
        )
        return ReasoningGymVerifier(dataset=self.dataset, scoring=self.scoring, limits=limits)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReasoningGymVerifier:
    """Verifier that calls `score_answer` of a reasoning-gym task.

    Attributes:
        dataset: Name of the task.
        scoring: `graded` rewards partial scores, `binary` does not.
        limits: Limits of the scorer.
    """

    dataset: str
    scoring: Literal["binary", "graded"]
    limits: SandboxLimits

    def warm_up(self) -> None:
        """Start the scoring process, so that its start does not count against the first deadline."""
        _scorers().session(self.limits)

    def verify(self, response_text: str, answer: str) -> Verdict:
        """Verify a response.

        Args:
            response_text: The response, without its prompt.
            answer: JSON of the task's entry, as written by `encode_entry`; `answer` and `metadata` are required.

        Raises:
            DataError: `answer` is not an entry, or belongs to another task.
            ConfigError: The task rejects the entry's settings.
            EngineError: The scorer failed on the answer, or exceeded its memory.
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
        request = {
            "dataset": self.dataset,
            "settings": entry.get("settings", {}),
            "entry": entry,
            "answer": response_answer,
        }
        result = _scorers().run(json.dumps(_tagged(request)), self.limits)
        if result.ended == "timeout":
            return TIMEOUT
        found = _scored(result, self.dataset)
        if "rejected" in found:
            raise ConfigError(
                f"reasoning-gym's task {self.dataset!r} rejects the settings {request['settings']}: {found['rejected']}"
            )
        if "score" not in found:
            return UNPARSEABLE
        score = float(found["score"])
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
        entry = json.loads(text, object_hook=untagged)
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


class _Scorers:
    """The scoring process of this process. It forks one restricted process for each answer."""

    def __init__(self) -> None:
        self._source = Path(reasoning_gym_scoring.__file__).read_text(encoding="utf-8")
        self._session: SandboxSession | None = None
        self._limits: SandboxLimits | None = None
        atexit.register(self.close)

    def session(self, limits: SandboxLimits) -> SandboxSession:
        """Return the process, started if necessary."""
        if self._session is None or self._session.is_closed or self._limits != limits:
            self.close()
            self._session = SandboxSession(limits, preload=["sympy.parsing.sympy_parser", "reasoning_gym"])
            self._limits = limits
            self._session.wait_until_ready(time.monotonic() + _START_TIMEOUT_S)
        return self._session

    def run(self, request: str, limits: SandboxLimits) -> SandboxResult:
        """Score an answer."""
        session = self.session(limits)
        return session.run(self._source, stdin=request, deadline=time.monotonic() + limits.wall_s)

    def close(self) -> None:
        """End the process."""
        if self._session is not None:
            self._session.close()


@cache
def _scorers() -> _Scorers:
    return _Scorers()


def _scored(result: SandboxResult, dataset: str) -> dict[str, Any]:
    """Return what the scorer printed last.

    Raises:
        EngineError: It failed.
    """
    lines = result.stdout.splitlines()
    if result.exit_code != 0 or not lines:
        reason = result.exceeded or (result.stderr.strip().splitlines() or [f"it was {result.ended}"])[-1]
        raise EngineError(f"the scorer of reasoning-gym's task {dataset!r} failed: {reason}")
    found = json.loads(lines[-1])
    return found if isinstance(found, dict) else {}


def _tagged(value: Any) -> Any:
    match value:
        case tuple():
            return {TUPLE: [_tagged(item) for item in value]}
        case list():
            return [_tagged(item) for item in value]
        case dict() if all(isinstance(key, str) for key in value):
            return {key: _tagged(item) for key, item in value.items()}
        case dict():
            return {PAIRS: [[_tagged(key), _tagged(item)] for key, item in value.items()]}
    return value
