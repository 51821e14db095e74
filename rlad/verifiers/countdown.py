"""Countdown verifier: reward 1 for an expression of exactly the puzzle's numbers that equals the target, else 0.

The expression is in the last `<answer>` tags after the thinking and may be an equation (`(3 + 4) * 6 = 42`). Each
number must be used exactly once. The parsed expression is computed exactly, in rational numbers. LaTeX
(`\\times`, `\\frac`, a box) and Markdown around it are removed first. Nothing of the response is evaluated as code.
"""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass
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
_OPERATORS = (ast.Add, ast.Sub, ast.Mult, ast.Div)
_SIGNS = (ast.UAdd, ast.USub)


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
        numbers: list[int] = []
        if tree is None or len(results) > 1 or not _collect_numbers(tree, numbers):
            return UNPARSEABLE
        if results and results[0].strip() != str(puzzle.target):
            return WRONG
        # Check the numbers first, so that only small numbers are computed.
        if sorted(numbers) != sorted(puzzle.numbers):
            return WRONG
        try:
            numerator, denominator = _value(tree)
        except ZeroDivisionError:
            return WRONG
        return CORRECT if numerator == puzzle.target * denominator else WRONG


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
    """Return the syntax tree of an expression of digits, `+ - * /` and parentheses; None for any other text."""
    if len(expression) > _MAX_CHARACTERS or not _EXPRESSION.fullmatch(expression):
        return None
    try:
        return ast.parse(" ".join(expression.split()), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def _collect_numbers(node: ast.expr, numbers: list[int]) -> bool:
    """Append the integers of an expression to `numbers`; return whether it has nothing but integers and `+ - * /`."""
    if isinstance(node, ast.BinOp):
        return (
            type(node.op) in _OPERATORS
            and _collect_numbers(node.left, numbers)
            and _collect_numbers(node.right, numbers)
        )
    if isinstance(node, ast.Constant):
        if type(node.value) is not int:
            return False
        numbers.append(node.value)
        return True
    return isinstance(node, ast.UnaryOp) and type(node.op) in _SIGNS and _collect_numbers(node.operand, numbers)


def _value(node: ast.expr) -> tuple[int, int]:
    """Return numerator and denominator of an expression, not reduced.

    Raises:
        ZeroDivisionError: The expression divides by zero.
    """
    if isinstance(node, ast.Constant):
        assert isinstance(node.value, int)
        return node.value, 1
    if isinstance(node, ast.UnaryOp):
        numerator, denominator = _value(node.operand)
        return (-numerator if isinstance(node.op, ast.USub) else numerator), denominator
    assert isinstance(node, ast.BinOp)
    (a, b), (c, d) = _value(node.left), _value(node.right)
    kind = type(node.op)
    if kind is ast.Mult:
        return a * c, b * d
    if kind is ast.Div:
        if c == 0:
            raise ZeroDivisionError
        return a * d, b * c
    return (a * d + c * b if kind is ast.Add else a * d - c * b), b * d
