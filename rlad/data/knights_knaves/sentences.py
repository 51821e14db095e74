"""Language of the K&K set: rendering of puzzles as its sentences, parsing, and its instruction."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import replace

from rlad.data.knights_knaves.puzzle import (
    CONNECTIVES,
    KNAVE,
    KNIGHT,
    NOT,
    Puzzle,
    Solution,
    Statement,
    puzzle_from_statements,
)
from rlad.errors import DataError

# Names of the people in the set.
# fmt: off
NAMES = (
    "Abigail", "Aiden", "Alexander", "Amelia", "Aria", "Aurora", "Ava", "Avery", "Benjamin", "Charlotte", "Chloe",
    "Daniel", "David", "Elizabeth", "Ella", "Emily", "Emma", "Ethan", "Evelyn", "Grace", "Harper", "Henry", "Isabella",
    "Jack", "Jackson", "Jacob", "James", "Joseph", "Liam", "Lily", "Logan", "Lucas", "Luke", "Mason", "Matthew", "Mia",
    "Michael", "Noah", "Oliver", "Olivia", "Owen", "Penelope", "Riley", "Samuel", "Scarlett", "Sebastian", "Sofia",
    "Sophia", "Victoria", "William", "Zoey",
)
# fmt: on

# Phrases with which the set introduces a person's claim.
_TELLINGS = (
    "{speaker} said that {claim}.",
    "{speaker} told you that {claim}.",
    "{speaker} expressed that {claim}.",
    '{speaker} said, "{claim}."',
    '{speaker} stated, "{claim}".',
    '{speaker} asserted: "{claim}".',
    '{speaker} was heard saying, "{claim}".',
    '{speaker} remarked, "{claim}".',
    '{speaker} commented, "{claim}".',
    '{speaker} noted, "{claim}".',
    '"{claim}," {speaker} claimed.',
    '"{claim}," {speaker} declared.',
    '"{claim}," {speaker} mentioned.',
    '"{claim}" - {speaker}.',
    'As {speaker} put it, "{claim}".',
    'According to {speaker}, "{claim}".',
    'In {speaker}\'s words: "{claim}".',
    'In a statement by {speaker}: "{claim}".',
)

_OPENING = (
    "A very special island is inhabited only by knights and knaves. Knights always tell the truth, and knaves always "
    "lie. "
    "You meet {count} inhabitants: {names}. "
)
_QUESTION = " So who is a knight and who is a knave?"
_INFIXES = dict(zip(CONNECTIVES, (" and ", " or ", " then ", " if and only if "), strict=True))

INSTRUCTION = (
    "You are a helpful assistant. The assistant first thinks about the reasoning process in the mind and then "
    "provides the user with the answer. The reasoning process and answer are enclosed within <think> </think> "
    "and<answer> </answer> tags, respectively, i.e., <think> reasoning process here </think>"
    "<answer> answer here </answer>.  Now the user asks you to solve a logical reasoning problem. "
    "After thinking, when you finally reach a conclusion, clearly state the identity of each character within "
    "<answer> </answer> tags. i.e., <answer> (1) Zoey is a knight\n(2) ... </answer>."
)
"""System message of Logic-RL's prompts, which the paper's K&K runs use. Verbatim, including the missing space."""


def with_names(puzzle: Puzzle, rng: random.Random) -> Puzzle:
    """Return the puzzle with random names from the set."""
    return replace(puzzle, names=tuple(rng.sample(NAMES, puzzle.num_people)))


def render_quiz(puzzle: Puzzle, rng: random.Random) -> str:
    """Return the puzzle in the set's sentences. `rng` selects the phrase that introduces each claim.

    Raises:
        DataError: The puzzle has no names.
    """
    names = _names(puzzle)
    listed = ", ".join(names[:-1]) + ", and " + names[-1]
    tellings = [
        rng.choice(_TELLINGS).format(speaker=name, claim=_render_statement(statement, names))
        for name, statement in zip(names, puzzle.statements, strict=True)
    ]
    return _OPENING.format(count=len(names), names=listed) + " ".join(tellings) + _QUESTION


def render_messages(quiz: str) -> tuple[dict[str, str], ...]:
    """Return the quiz as chat messages with the paper's instruction, without a chat template."""
    return ({"role": "system", "content": INSTRUCTION}, {"role": "user", "content": quiz})


def render_answer(names: Sequence[str], solution: Solution) -> str:
    """Return the answer in the set's `solution_text_format`, `(1) Zoey is a knight`, one line per person."""
    people = enumerate(zip(names, solution, strict=True), start=1)
    return "\n".join(
        f"({number}) {name} is a {'knight' if is_knight else 'knave'}" for number, (name, is_knight) in people
    )


def _names(puzzle: Puzzle) -> tuple[str, ...]:
    if puzzle.names is None:
        raise DataError("a puzzle in sentences requires names, got None; add them with `with_names`")
    return puzzle.names


def _render_statement(statement: Statement, names: Sequence[str]) -> str:
    kind, *operands = statement
    if kind in (KNIGHT, KNAVE):
        return f"{names[operands[0]]} is {_role(kind)}"
    if kind == NOT:
        role, person = operands[0]
        return f"{names[person]} is not {_role(role)}"
    left, right = (_render_statement(operand, names) for operand in operands)
    return ("If " if kind == "->" else "") + left + _INFIXES[kind] + right


def _role(kind: str) -> str:
    return "a knight" if kind == KNIGHT else "a knave"


def parse_quiz(quiz: str) -> Puzzle:
    """Return the puzzle of a quiz in the set's language, after proving that its solution is unique.

    Raises:
        DataError: A sentence is outside the language (the message quotes it), or the puzzle does not have exactly one
            solution.
    """
    opening = re.match(_pattern(_OPENING, count=r"(\d+)", names="([^.]+)"), quiz)
    if not opening or not quiz.endswith(_QUESTION):
        raise DataError(f"a K&K quiz must open with {_OPENING!r} and end with {_QUESTION!r}, got {quiz[:200]!r}")
    names = re.split(r", and |, ", opening[2])
    if len(names) != int(opening[1]) or len(set(names)) != len(names):
        raise DataError(f"the quiz announces {opening[1]} inhabitants; expected as many distinct names, got {names}")
    remaining = quiz[opening.end() : len(quiz) - len(_QUESTION)] + " "
    statements = []
    for speaker in names:
        claim, remaining = _take_claim(remaining, speaker)
        statements.append(_parse_claim(claim, names))
    if remaining:
        raise DataError(f"expected the question after the last person's statement, got {remaining[:200]!r}")
    return puzzle_from_statements(statements, names)


def _pattern(template: str, **groups: str) -> str:
    """Return a regular expression for a template, with an expression for each placeholder."""
    pattern = re.escape(template)
    for name, group in groups.items():
        pattern = pattern.replace(rf"\{{{name}\}}", group)
    return pattern


def _take_claim(text: str, speaker: str) -> tuple[str, str]:
    """Return the next speaker's claim and the remaining text."""
    for telling in _TELLINGS:
        match = re.match(_pattern(telling, speaker=re.escape(speaker), claim='([^".,]+)') + " ", text)
        if match:
            return match[1], text[match.end() :]
    raise DataError(f"expected a statement by {speaker} in the language of the K&K set, got {text[:200]!r}")


def _parse_claim(claim: str, names: Sequence[str]) -> Statement:
    if claim.startswith("If "):
        left, _, right = claim.removeprefix("If ").partition(" then ")
        return ("->", _parse_literal(left, names), _parse_literal(right, names))
    for connective in ("<=>", "and", "or"):
        left, infix, right = claim.partition(_INFIXES[connective])
        if infix:
            return (connective, _parse_literal(left, names), _parse_literal(right, names))
    if " is not " in claim:
        return (NOT, _parse_literal(claim.replace(" is not ", " is ", 1), names))
    return _parse_literal(claim, names)


def _parse_literal(sentence: str, names: Sequence[str]) -> Statement:
    match = re.fullmatch(r"(.+) is a (knight|knave)", sentence)
    if not match or match[1] not in names:
        raise DataError(f"expected `X is a knight` or `X is a knave` with X of {', '.join(names)}, got {sentence!r}")
    return (KNIGHT if match[2] == "knight" else KNAVE, names.index(match[1]))
