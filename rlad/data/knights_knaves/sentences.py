"""The language of the K&K set: puzzles told in its sentences, read back from them, and asked with its instruction."""

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

# The names of the people in the set.
# fmt: off
NAMES = (
    "Abigail", "Aiden", "Alexander", "Amelia", "Aria", "Aurora", "Ava", "Avery", "Benjamin", "Charlotte", "Chloe", "Daniel", "David",
    "Elizabeth", "Ella", "Emily", "Emma", "Ethan", "Evelyn", "Grace", "Harper", "Henry", "Isabella", "Jack", "Jackson", "Jacob", "James",
    "Joseph", "Liam", "Lily", "Logan", "Lucas", "Luke", "Mason", "Matthew", "Mia", "Michael", "Noah", "Oliver", "Olivia", "Owen",
    "Penelope", "Riley", "Samuel", "Scarlett", "Sebastian", "Sofia", "Sophia", "Victoria", "William", "Zoey",
)
# fmt: on

# How the set introduces what a person says.
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
    "A very special island is inhabited only by knights and knaves. Knights always tell the truth, and knaves always lie. "
    "You meet {count} inhabitants: {names}. "
)
_QUESTION = " So who is a knight and who is a knave?"
_INFIXES = dict(zip(CONNECTIVES, (" and ", " or ", " then ", " if and only if "), strict=True))

INSTRUCTION = (
    "You are a helpful assistant. The assistant first thinks about the reasoning process in the mind and then provides the user with the answer. "
    "The reasoning process and answer are enclosed within <think> </think> and<answer> </answer> tags, respectively, i.e., "
    "<think> reasoning process here </think><answer> answer here </answer>.  Now the user asks you to solve a logical reasoning problem. "
    "After thinking, when you finally reach a conclusion, clearly state the identity of each character within <answer> </answer> tags. "
    "i.e., <answer> (1) Zoey is a knight\n(2) ... </answer>."
)
"""The system message of Logic-RL's prompts, which the paper's K&K runs use; word for word, missing space included."""


def with_names(puzzle: Puzzle, rng: random.Random) -> Puzzle:
    """The puzzle with names of the set drawn for its people."""
    return replace(puzzle, names=tuple(rng.sample(NAMES, puzzle.num_people)))


def render_quiz(puzzle: Puzzle, rng: random.Random) -> str:
    """The puzzle in the set's sentences; `rng` chooses how each statement is introduced.

    Raises:
        DataError: the puzzle has no names.
    """
    names = _names(puzzle)
    listed = ", ".join(names[:-1]) + ", and " + names[-1]
    tellings = [
        rng.choice(_TELLINGS).format(speaker=name, claim=_render_statement(statement, names))
        for name, statement in zip(names, puzzle.statements, strict=True)
    ]
    return _OPENING.format(count=len(names), names=listed) + " ".join(tellings) + _QUESTION


def render_messages(quiz: str) -> tuple[dict[str, str], ...]:
    """The quiz as chat messages with the paper's instruction. The chat template is the tokenizer's business."""
    return ({"role": "system", "content": INSTRUCTION}, {"role": "user", "content": quiz})


def render_answer(names: Sequence[str], solution: Solution) -> str:
    """The answer as the set's `solution_text_format` has it: `(1) Zoey is a knight`, one line a person."""
    people = enumerate(zip(names, solution, strict=True), start=1)
    return "\n".join(
        f"({number}) {name} is a {'knight' if is_knight else 'knave'}" for number, (name, is_knight) in people
    )


def _names(puzzle: Puzzle) -> tuple[str, ...]:
    if puzzle.names is None:
        raise DataError("a puzzle told in sentences needs names: give it some with `with_names`")
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
    """The puzzle that a quiz in the set's language tells, its solution proved unique.

    Raises:
        DataError: a sentence is not of the language (it is quoted), or the puzzle has not exactly one solution.
    """
    opening = re.match(_pattern(_OPENING, count=r"(\d+)", names="([^.]+)"), quiz)
    if not opening or not quiz.endswith(_QUESTION):
        raise DataError(f"a K&K quiz opens with {_OPENING!r} and ends with {_QUESTION!r}, got {quiz[:200]!r}")
    names = re.split(r", and |, ", opening[2])
    if len(names) != int(opening[1]) or len(set(names)) != len(names):
        raise DataError(f"the quiz announces {opening[1]} inhabitants and names {names}")
    told = quiz[opening.end() : len(quiz) - len(_QUESTION)] + " "
    statements = []
    for speaker in names:
        claim, told = _take_claim(told, speaker)
        statements.append(_parse_claim(claim, names))
    if told:
        raise DataError(f"expected the question after everyone's statement, got {told[:200]!r}")
    return puzzle_from_statements(statements, names)


def _pattern(template: str, **groups: str) -> str:
    """A regular expression of a template, each placeholder replaced by the expression for it."""
    pattern = re.escape(template)
    for name, group in groups.items():
        pattern = pattern.replace(rf"\{{{name}\}}", group)
    return pattern


def _take_claim(told: str, speaker: str) -> tuple[str, str]:
    """What the next speaker claims, and what is told after that."""
    for telling in _TELLINGS:
        match = re.match(_pattern(telling, speaker=re.escape(speaker), claim='([^".,]+)') + " ", told)
        if match:
            return match[1], told[match.end() :]
    raise DataError(f"expected a statement by {speaker} in the language of the K&K set, got {told[:200]!r}")


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
