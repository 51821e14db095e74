"""Verdict, and the protocols of verifiers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from rlad.contracts import Outcome


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """Reward and outcome of one response."""

    reward: float
    outcome: Outcome


CORRECT = Verdict(reward=1.0, outcome=Outcome.CORRECT)
WRONG = Verdict(reward=0.0, outcome=Outcome.WRONG)
UNPARSEABLE = Verdict(reward=0.0, outcome=Outcome.UNPARSEABLE)
TIMEOUT = Verdict(reward=0.0, outcome=Outcome.TIMEOUT)


class Verifier(Protocol):
    """Verifier of one task.

    It is stateless, so it can run in any process. The caller enforces deadlines.
    """

    def verify(self, response_text: str, answer: Any) -> Verdict:
        """Verify a response (without its prompt) against a prompt record's answer.

        Raises:
            DataError: The expected answer, not the response, is malformed.
        """
        ...


@runtime_checkable
class WarmsUp(Protocol):
    """Verifier that has something to start before its first deadline."""

    def warm_up(self) -> None:
        """Start what the verifier needs."""
        ...


@runtime_checkable
class GivesAnswer(Protocol):
    """Verifier that can also extract a response's answer, for a majority vote."""

    def answer_of(self, response_text: str) -> str | None:
        """Return the answer in a canonical form, so that equal answers have equal texts where possible.

        Return None if there is no answer.
        """
        ...


@runtime_checkable
class StatesAnswer(Protocol):
    """Verifier that can state an expected answer as a response would, to try the answers of prompts."""

    def response_for(self, answer: str) -> str:
        """Return a response that gives the expected answer."""
        ...


@runtime_checkable
class ComparesAnswers(GivesAnswer, Protocol):
    """Verifier that can tell whether two extracted answers mean the same. Without it, only equal texts are one vote."""

    def is_same_answer(self, first: str, second: str) -> bool:
        """Return True if two results of `answer_of` mean the same. The order of the arguments does not matter."""
        ...
