"""What every verifier takes and gives."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from rlad.contracts import Outcome


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """Reward of one response and what was found."""

    reward: float
    outcome: Outcome


CORRECT = Verdict(reward=1.0, outcome=Outcome.CORRECT)
WRONG = Verdict(reward=0.0, outcome=Outcome.WRONG)
UNPARSEABLE = Verdict(reward=0.0, outcome=Outcome.UNPARSEABLE)


class Verifier(Protocol):
    """Judges responses of one task. Holds no state, so it can run in any process; deadlines are the caller's."""

    def verify(self, response_text: str, answer: Any) -> Verdict:
        """Judge a response (without its prompt) against a prompt record's answer.

        Raises:
            DataError: the answer, not the response, is malformed.
        """
        ...


@runtime_checkable
class GivesAnswer(Protocol):
    """A verifier that can also say what a response's answer is, for a majority vote."""

    def answer_of(self, response_text: str) -> str | None:
        """The answer in a canonical spelling: responses that answer alike give equal texts, as far as that can be told. None: there is none."""
        ...
