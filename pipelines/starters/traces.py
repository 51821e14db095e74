"""The response format that starter models learn: the traces of the compact notation with their working shown.

A compact trace states a statement's truth under a candidate in one token, which takes two look-ups and a combination at once; tiny models learn
that slowly. Shown, each token takes one look-up, and training needs a fraction of the steps. `A:c|B;B:c>a;C:B|b;?` gives, for its first candidate,

    TTT:TTT             in the compact trace
    ABC:AF|TTBF>FTCT|FT with the working shown

The candidate stands as people in their roles (upper case a knight); then, for each speaker in turn, the speaker, what he says with each person
replaced by its truth, and, where he says more than that, the value of the whole. If and only if is `?` here, not `=`: `=` comes once in a response,
before the answer, and verifiers go by it.
"""

from __future__ import annotations

from rlad.data.knights_knaves.compact import PERSONS, render_prompt
from rlad.data.knights_knaves.puzzle import Puzzle

_IFF_IN_PROMPTS, _IFF = "=", "?"


def show_working(puzzle: Puzzle, trace: str) -> str:
    """A compact trace of the puzzle's, correct or careless, with its working shown; same values, same answer.

    A careless trace's value then contradicts the working before it, except for a bare `B is a knight`, whose value is all its working.
    """
    clauses = [clause.split(":")[1].replace(_IFF_IN_PROMPTS, _IFF) for clause in render_prompt(puzzle).split(";")[:-1]]
    steps, answer = trace.split("=")
    shown = []
    rest = steps
    while rest:
        candidate, _, rest = rest.partition(":")
        values, rest = _split_values(rest, puzzle.num_people)
        worked = [
            _show(speaker, clause, candidate, value)
            for speaker, (clause, value) in enumerate(zip(clauses, values.rstrip("x"), strict=False))
        ]
        roles = "".join(_role(person, role == "T") for person, role in enumerate(candidate))
        shown.append(f"{roles}:{''.join(worked)}{'x' if values.endswith('x') else ''}")
    return "".join(shown) + "=" + answer


def longest_trace(num_people: int) -> int:
    """Tokens of the longest response: every candidate, each with every statement of two people; `=`, the answer, the end."""
    candidate, statement = num_people + 1, len("AF|TT")
    return int(2**num_people) * (candidate + num_people * statement + 1) + num_people + 1


def _split_values(text: str, num_people: int) -> tuple[str, str]:
    """What follows a candidate's colon, up to its contradiction (`x`, included) or its last value; and the rest."""
    contradiction = text.find("x")
    end = contradiction + 1 if 0 <= contradiction <= num_people else num_people
    return text[:end], text[end:]


def _show(speaker: int, clause: str, candidate: str, value: str) -> str:
    working = "".join(_truth(character, candidate) if character.isalpha() else character for character in clause)
    return PERSONS[speaker] + (value if len(clause) == 1 else working + value)


def _truth(literal: str, candidate: str) -> str:
    is_knight = candidate[PERSONS.index(literal.upper())] == "T"
    return "T" if is_knight == literal.isupper() else "F"


def _role(person: int, is_knight: bool) -> str:
    return PERSONS[person] if is_knight else PERSONS[person].lower()
