"""Mathematical answers: reward 1 if the final answer equals the given one as mathematics, by math-verify, else 0."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from rlad.errors import DataError
from rlad.verifiers.verdict import CORRECT, UNPARSEABLE, WRONG, Verdict

# Without its own timeouts math-verify warns at every call that the caller must provide one. We do: verifiers run in processes that are killed.
logging.getLogger("math_verify").setLevel(logging.ERROR)


class MathAnswerVerifierConfig(BaseModel):
    """Settings of the mathematical-answer verifier."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Literal["math_answer"]

    def build(self) -> MathAnswerVerifier:
        return MathAnswerVerifier()


@dataclass(frozen=True, slots=True)
class MathAnswerVerifier:
    """Judges answers such as `so the sum is \\boxed{97}`: boxed ones first, else the last number or formula.

    math-verify's own timeouts are signal alarms, which fail off the main thread; they are off here, the deadline is the caller's.
    """

    def verify(self, response_text: str, answer: str) -> Verdict:
        """Judge a response; what stands before a closing `</think>` does not count.

        Args:
            answer: the expected answer, in LaTeX or plain, for example `\\frac{1}{2}` or `97`.

        Raises:
            DataError: `answer` is not mathematics that can be read.
        """
        from math_verify import parse, verify  # sympy takes a while to import

        gold: list[Any] = parse(f"\\boxed{{{answer}}}", parsing_timeout=None)
        if not gold:
            raise DataError(f"the expected answer {answer!r} cannot be read as mathematics")
        given: list[Any] = parse(response_text.rpartition("</think>")[2], parsing_timeout=None)
        if not given:
            return UNPARSEABLE
        return CORRECT if verify(gold, given, timeout_seconds=None) else WRONG

    def answer_of(self, response_text: str) -> str | None:
        """The final answer as sympy prints it, numbers as fractions: `1/2` for `\\frac{2}{4}` and for `0.5`."""
        from math_verify import parse
        from sympy import Basic, nsimplify

        given: list[Any] = parse(response_text.rpartition("</think>")[2], parsing_timeout=None)
        if not given:
            return None
        answer = given[0]
        return str(nsimplify(answer.doit(), rational=True) if isinstance(answer, Basic) and answer.is_number else answer)
