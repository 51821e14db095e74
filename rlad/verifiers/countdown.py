"""Countdown: reward 1 for an expression of the given numbers, each used exactly once, that equals the target; else 0.

The expression stands inside the last `<answer>` tags after the thinking, and may be written as an equation (`(3 + 4) * 6 = 42`). Its arithmetic is
exact, in rationals, over the parsed expression: nothing of the response is ever evaluated as code.
"""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictInt, ValidationError

from rlad.errors import DataError
from rlad.verifiers.response_text import after_thinking, last_answer_block
from rlad.verifiers.verdict import CORRECT, UNPARSEABLE, WRONG, Verdict

_WRITTEN_OTHERWISE = str.maketrans({"×": "*", "·": "*", "÷": "/", "−": "-", "–": "-", "[": "(", "]": ")"})
_EXPRESSION = re.compile(r"[\d+\-*/()\s]+")
# Of an expression: more than a puzzle needs, and too few to nest deeper than the interpreter can follow.
_MAX_CHARACTERS = 500

_BINARY: dict[type[ast.operator], Callable[[Fraction, Fraction], Fraction]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}
_UNARY: dict[type[ast.unaryop], Callable[[Fraction], Fraction]] = {ast.UAdd: operator.pos, ast.USub: operator.neg}


class CountdownVerifierConfig(BaseModel):
    """Settings of the countdown verifier. A prompt's answer is JSON: `{"numbers": [3, 4, 6], "target": 42}`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Literal["countdown"]

    def build(self) -> CountdownVerifier:
        return CountdownVerifier()


class _Puzzle(BaseModel):
    """A prompt's answer."""

    numbers: Annotated[list[StrictInt], Field(min_length=1)]
    target: StrictInt


@dataclass(frozen=True, slots=True)
class CountdownVerifier:
    """Judges answers such as `<answer>(3 + 4) * 6</answer>`."""

    def verify(self, response_text: str, answer: str) -> Verdict:
        """Judge a response.

        Args:
            answer: JSON with `numbers`, a list of whole numbers, and `target`, a whole number.

        Raises:
            DataError: `answer` is something else.
        """
        try:
            puzzle = _Puzzle.model_validate_json(answer)
        except ValidationError as error:
            raise DataError(
                f'the answer of a countdown puzzle is JSON such as {{"numbers": [3, 4, 6], "target": 42}}, got {answer!r}'
            ) from error
        spoken = after_thinking(response_text)
        block = None if spoken is None else last_answer_block(spoken)
        if block is None:
            return UNPARSEABLE
        expression, *results = block.translate(_WRITTEN_OTHERWISE).split("=")
        tree = _parse(expression)
        if tree is None or len(results) > 1:
            return UNPARSEABLE
        if results and results[0].strip() != str(puzzle.target):
            return WRONG
        # Numbers first: only what is small enough is computed.
        if sorted(
            node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, int)
        ) != sorted(puzzle.numbers):
            return WRONG
        try:
            return CORRECT if _value(tree) == puzzle.target else WRONG
        except ZeroDivisionError:
            return WRONG


def _parse(expression: str) -> ast.expr | None:
    """The syntax tree of an expression of whole numbers, `+ - * /` and parentheses; None for anything else."""
    if len(expression) > _MAX_CHARACTERS or not _EXPRESSION.fullmatch(expression):
        return None
    try:
        tree = ast.parse(" ".join(expression.split()), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    return tree if all(_is_allowed(node) for node in ast.walk(tree)) else None


def _is_allowed(node: ast.AST) -> bool:
    if isinstance(node, ast.Constant):
        return type(node.value) is int
    return isinstance(node, (ast.BinOp, ast.UnaryOp, *_BINARY, *_UNARY))


def _value(node: ast.expr) -> Fraction:
    match node:
        case ast.Constant(value=int(number)):
            return Fraction(number)
        case ast.BinOp(left=left, op=op, right=right):
            return _BINARY[type(op)](_value(left), _value(right))
        case ast.UnaryOp(op=sign, operand=operand):
            return _UNARY[type(sign)](_value(operand))
    raise AssertionError(f"{type(node).__name__} is not allowed in an expression")
