"""Extraction of the readable text of a file: docstrings, messages and comments of Python, prose of other formats."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePath
from typing import Literal

Kind = Literal["docstring", "description", "text", "name"]

_DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
_BODIES = (ast.Module, *_DEFINITIONS)
_COMMENT_MARK = re.compile(r"^\s*#+!?", re.MULTILINE)
_INLINE_CODE = re.compile(r"`+[^`]*`+")
_LISTED_TEXTS = {".md", ".yaml", ".yml", ".toml", ".sh", ".service", ".j2", ".css", ".html", ".js", ".svg", ".cfg"}
_LISTED_NAMES = {"Makefile", ".gitignore", ".dockerignore", ".rladignore"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Passage:
    """A piece of text that a person reads.

    Attributes:
        line: number of its first line.
        text: the text; its line breaks are those of the file, so that a match can be located.
        kind: a docstring, a `description=` or `help=` text, any other text, or a defined name.
    """

    line: int
    text: str
    kind: Kind


def passages_of(path: PurePath, source: str) -> Iterator[Passage]:
    """Yield the passages of a file, by its name; nothing for a format that holds no text.

    Raises:
        SyntaxError: a Python file cannot be parsed.
    """
    if path.suffix == ".py":
        yield from _of_python(source)
    elif path.suffix == ".md":
        yield Passage(line=1, text=_INLINE_CODE.sub(_blank, source), kind="text")
    elif path.suffix in _LISTED_TEXTS or path.name in _LISTED_NAMES or path.name.startswith("Dockerfile"):
        yield Passage(line=1, text=_COMMENT_MARK.sub(_blank, source), kind="text")


def _blank(match: re.Match[str]) -> str:
    return re.sub(r"[^\n]", " ", match.group())


def _of_python(source: str) -> Iterator[Passage]:
    tree = ast.parse(source)
    yield from _docstrings(tree)
    yield from _strings(tree)
    yield from _comments(source)
    for node in ast.walk(tree):
        if isinstance(node, _DEFINITIONS):
            yield Passage(line=node.lineno, text=node.name, kind="name")
        elif isinstance(node, ast.arg):
            yield Passage(line=node.lineno, text=node.arg, kind="name")


def _docstrings(tree: ast.Module) -> Iterator[Passage]:
    """Yield every string that is a statement in a module, class or function: docstrings, and those of attributes."""
    for node in ast.walk(tree):
        if isinstance(node, _BODIES):
            for statement in node.body:
                if isinstance(statement, ast.Expr) and isinstance(text := _literal(statement.value), str):
                    yield Passage(line=statement.lineno, text=text, kind="docstring")


def _strings(tree: ast.Module) -> Iterator[Passage]:
    """Yield every other string, and again as a description those that are passed as `description=` or `help=`."""
    inner: set[ast.AST] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            inner.update(node.values)
        elif isinstance(node, ast.Expr) and _literal(node.value) is not None:
            inner.add(node.value)
        elif isinstance(node, ast.keyword) and node.arg in ("description", "help") and (text := _literal(node.value)):
            yield Passage(line=node.value.lineno, text=text, kind="description")
    for node in ast.walk(tree):
        if node not in inner and (text := _literal(node)) is not None:
            yield Passage(line=node.lineno, text=text, kind="text")  # type: ignore[attr-defined]


def _literal(node: ast.AST) -> str | None:
    """Return the text of a string or f-string, each placeholder as `{}`; None for any other expression."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(_literal(value) or "{}" for value in node.values)
    return None


def _comments(source: str) -> Iterator[Passage]:
    """Yield the comments; consecutive lines with nothing but a comment make one passage."""
    first, lines, previous = 0, list[str](), -1
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type != tokenize.COMMENT:
            continue
        line, column = token.start
        stands_alone = not token.line[:column].strip()
        if lines and not (stands_alone and line == previous + 1):
            yield Passage(line=first, text="\n".join(lines), kind="text")
            lines = []
        if not lines:
            first = line
        lines.append(token.string.lstrip("#"))
        previous = line if stands_alone else -1
    if lines:
        yield Passage(line=first, text="\n".join(lines), kind="text")
