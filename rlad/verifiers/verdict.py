"""What every verifier takes and gives."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

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
