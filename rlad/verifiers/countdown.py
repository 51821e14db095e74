"""Countdown verifier: reward 1 for an expression of exactly the puzzle's numbers that equals the target, else 0.

The expression is in the last `<answer>` tags after the thinking and may be an equation (`(3 + 4) * 6 = 42`). Each
number must be used exactly once. The parsed expression is computed exactly, in rational numbers. LaTeX
(`\\times`, `\\frac`, a box) and Markdown around it are removed first. Nothing of the response is evaluated as code.
"""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Annotated, Literal

from pydantic import BaseModel, Field, StrictInt, ValidationError

from rlad.errors import DataError
from rlad.verifiers.response_tags import TaggedVerifierConfig
from rlad.verifiers.response_text import after_thinking, last_answer_block, last_boxed
from rlad.verifiers.verdict import CORRECT, UNPARSEABLE, WRONG, Verdict

_WRITTEN_OTHERWISE = str.maketrans(
    {"×": "*", "·": "*", "⋅": "*", "∗": "*", "÷": "/", "−": "-", "–": "-", "（": "(", "）": ")", "＝": "=", "＋": "+"}
    | {"∕": "/", "⁄": "/", "✓": "", "✔": "", "✅": ""}
)
# LaTeX and Markdown around an expression. A fraction becomes a division of parentheses.
_FRACTION = re.compile(r"\\[dtc]?frac\s*\{([^{}]*)\}\s*\{([^{}]*)\}")
_DECORATION = re.compile(
    r"\\(?:left|right|[bB]igg?[lr]?|displaystyle|quad|qquad|checkmark|[,;:! ])(?![A-Za-z])|\\[()\[\]]|\$"
    r"|`(?:``\w*)?|^\s*\*\*(?=.*\*\*\s*$)|\*\*\s*$"
)
_TIMES = re.compile(r"\\(?:times|cdot|ast)(?![A-Za-z])|(?<=[\d)\s])[xX](?=[\d(\s])")
_IMPLICIT_PRODUCT = re.compile(r"(?<=\d)\s*(?=\()|(?<=\))\s*(?=[\d(])")
_BRACKETS = str.maketrans("[]{}", "()()")
_MAX_NESTED_FRACTIONS = 8
_EXPRESSION = re.compile(r"[\d+\-*/()\s]+")
# Text without LaTeX and Markdown, which most answers are.
_PLAIN_EQUATION = re.compile(r"(?:[\d+\-/()=\s]|\*(?!\*))+")
# Maximum length of an expression: more than a puzzle needs, but too short to exceed the interpreter's recursion limit.
_MAX_CHARACTERS = 500

_BINARY: dict[type[ast.operator], Callable[[Fraction, Fraction], Fraction]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}
_UNARY: dict[type[ast.unaryop], Callable[[Fraction], Fraction]] = {ast.UAdd: operator.pos, ast.USub: operator.neg}


class CountdownVerifierConfig(TaggedVerifierConfig):
    """Settings of the countdown verifier. A prompt's answer is JSON: `{"numbers": [3, 4, 6], "target": 42}`."""

    name: Literal["countdown"]

    def build(self) -> CountdownVerifier:
        """Return the verifier."""
        return CountdownVerifier()


class _Puzzle(BaseModel):
    """Expected answer of a prompt: the numbers and the target."""

    numbers: Annotated[list[StrictInt], Field(min_length=1)]
    target: StrictInt


@dataclass(frozen=True, slots=True)
class CountdownVerifier:
    """Verifier of answers such as `<answer>(3 + 4) * 6</answer>`."""

    def verify(self, response_text: str, answer: str) -> Verdict:
        """Verify a response.

        Args:
            response_text: The response, without its prompt.
            answer: JSON with `numbers`, a list of integers, and `target`, an integer.

        Raises:
            DataError: `answer` has another form.
        """
        try:
            puzzle = _Puzzle.model_validate_json(answer)
        except ValidationError as error:
            raise DataError(
                "countdown: the answer of a countdown puzzle must be JSON such as "
                f'{{"numbers": [3, 4, 6], "target": 42}}, got {answer!r}'
            ) from error
        text = after_thinking(response_text)
        block = None if text is None else last_answer_block(text)
        if block is None:
            return UNPARSEABLE
        expression, *results = _plain(block).split("=")
        if len(results) == 1 and expression.strip() == str(puzzle.target) and results[0].strip() != expression.strip():
            expression, results = results[0], []  # `42 = (3 + 4) * 6`
        tree = _parse(expression)
        if tree is None or len(results) > 1:
            return UNPARSEABLE
        if results and results[0].strip() != str(puzzle.target):
            return WRONG
        # Check the numbers first, so that only small numbers are computed.
        if sorted(
            node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, int)
        ) != sorted(puzzle.numbers):
            return WRONG
        try:
            return CORRECT if _value(tree) == puzzle.target else WRONG
        except ZeroDivisionError:
            return WRONG


def _plain(block: str) -> str:
    """Return an expression in LaTeX or Markdown as plain text."""
    if _PLAIN_EQUATION.fullmatch(block):
        return _IMPLICIT_PRODUCT.sub("*", block.strip())
    boxed = last_boxed(block)
    text = (block if boxed is None else boxed).translate(_WRITTEN_OTHERWISE)
    text = _DECORATION.sub("", text)
    for _ in range(_MAX_NESTED_FRACTIONS):
        text, replaced = _FRACTION.subn(r"((\1)/(\2))", text)
        if not replaced:
            break
    text = re.sub(r"\\div(?![A-Za-z])", "/", _TIMES.sub("*", text))
    text = text.translate(_BRACKETS).strip().rstrip(".,;")
    return _IMPLICIT_PRODUCT.sub("*", text)


def _parse(expression: str) -> ast.expr | None:
    """Return the syntax tree of an expression of integers, `+ - * /` and parentheses; None for any other text."""
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
