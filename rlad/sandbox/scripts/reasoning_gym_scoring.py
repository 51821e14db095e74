"""Score an answer by a reasoning-gym task, inside the sandbox.

Standard input is JSON: `dataset`, `settings`, `entry` and `answer`. The last line of the output is JSON with `score`,
`unreadable` (the task cannot read the answer) or `rejected` (the task rejects the settings).

Several tasks call `eval` or sympy's `parse_expr` on the answer, which evaluates it as Python. Here both accept literals
and formulas only, so that an answer cannot write its own score either.
"""

from __future__ import annotations

import ast
import builtins
import json
import sys
from collections.abc import Callable
from typing import Any

# What JSON lacks (see `rlad.verifiers.reasoning_gym.encode_entry`).
TUPLE, PAIRS = "__tuple__", "__pairs__"
_ARITHMETIC = (ast.Expression, ast.BinOp, ast.UnaryOp, ast.operator, ast.unaryop, ast.Constant)
_FUNCTIONS = frozenset(
    (
        *("sin", "cos", "tan", "cot", "sec", "csc", "asin", "acos", "atan", "acot", "asec", "acsc"),
        *("sinh", "cosh", "tanh", "coth", "sech", "csch", "asinh", "acosh", "atanh", "exp", "log", "ln", "sqrt"),
        *("cbrt", "root", "Abs", "sign", "floor", "ceiling", "factorial", "binomial", "gamma", "erf", "erfc"),
        *("Rational", "Integer", "Float", "Pow", "Add", "Mul", "Max", "Min", "Mod"),
    )
)
_MAX_CHARACTERS = 10_000


def untagged(value: dict[str, Any]) -> Any:
    """Restore a tuple or a mapping with other keys than text. An object hook of `json`."""
    if value.keys() == {TUPLE}:
        return tuple(value[TUPLE])
    if value.keys() == {PAIRS}:
        return dict(value[PAIRS])
    return value


def evaluate(text: Any, *_: Any) -> Any:
    """Evaluate a literal or arithmetic on numbers, in place of `eval`.

    Raises:
        ValueError: The text is something else.
    """
    source = _checked(text)
    try:
        return ast.literal_eval(source)
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
        pass
    tree = _parsed(source)
    for node in ast.walk(tree):
        if not isinstance(node, _ARITHMETIC) or not _is_number(node):
            raise ValueError(f"not a literal: {source[:100]!r}")
    return eval(compile(tree, "answer", "eval"), {"__builtins__": {}})  # noqa: S307 - operators and numbers only


def guarded_parser(parse: Callable[..., Any]) -> Callable[..., Any]:
    """Return sympy's parser for formulas only: numbers, symbols, operators and mathematical functions."""

    def parse_formula(text: Any, *arguments: Any, **keywords: Any) -> Any:
        tree = _parsed(_checked(text))
        called = {id(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
        for node in ast.walk(tree):
            if isinstance(node, ast.Name):
                is_known = node.id in _FUNCTIONS if id(node) in called else not hasattr(builtins, node.id)
                if not is_known or node.id.startswith("_"):
                    raise ValueError(f"{node.id!r} is not part of a formula")
            elif not isinstance(node, (*_ARITHMETIC, ast.Call, ast.Load)) or not _is_number(node):
                raise ValueError(f"{type(node).__name__} is not part of a formula")
        return parse(text, *arguments, **keywords)

    return parse_formula


def guard_tasks() -> None:
    """Replace `eval` and sympy's parser in all modules of reasoning-gym."""
    import sympy
    from sympy.parsing import sympy_parser

    original = sympy_parser.parse_expr
    guarded = guarded_parser(original)
    sympy.parse_expr = guarded
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] == "reasoning_gym":
            vars(module)["eval"] = evaluate
            if vars(module).get("parse_expr") is original:
                vars(module)["parse_expr"] = guarded


def main() -> None:
    """Score the answer of standard input."""
    import reasoning_gym

    request = json.loads(sys.stdin.read(), object_hook=untagged)
    try:
        task = reasoning_gym.create_dataset(request["dataset"], **request["settings"])
    except (TypeError, ValueError, AssertionError) as error:
        result: dict[str, Any] = {"rejected": str(error)}
    else:
        guard_tasks()
        try:
            result = {"score": float(task.score_answer(answer=request["answer"], entry=request["entry"]))}
        except ValueError:  # some scorers fail on text that is not a number
            result = {"unreadable": True}
    print()
    print(json.dumps(result))


def _checked(text: Any) -> str:
    if not isinstance(text, str) or len(text) > _MAX_CHARACTERS:
        raise ValueError("expected a text of moderate length")
    return text


def _parsed(source: str) -> ast.Expression:
    try:
        return ast.parse(source.strip(), mode="eval")
    except (SyntaxError, RecursionError, MemoryError) as error:
        raise ValueError(f"not an expression: {source[:100]!r}") from error


def _is_number(node: ast.AST) -> bool:
    """Return whether a node is a number, if it is a constant at all; a call must not have keywords."""
    if isinstance(node, ast.Constant):
        return type(node.value) in (int, float)
    return not (isinstance(node, ast.Call) and node.keywords)


if __name__ == "__main__":
    main()
