"""Response format of the starter models: traces of the compact notation with intermediate steps.

A compact trace gives the truth value of a statement under a candidate solution in one token. That requires two look-ups
and a combination at once, which tiny models learn slowly. With intermediate steps each token requires one look-up, and
training takes a fraction of the steps. For its first candidate, `A:c|B;B:c>a;C:B|b;?` gives

    TTT:TTT             in the compact trace
    ABC:AF|TTBF>FTCT|FT with intermediate steps

The candidate is written as the people in their roles (upper case for a knight). Then follow, for each speaker: the
speaker, the statement with each person replaced by its truth value, and the value of the statement if it has several
parts. "If and only if" is `?` instead of `=`, because verifiers look for `=`, which occurs once, before the answer.
"""

from __future__ import annotations

from rlad.data.knights_knaves.compact import PERSONS, render_prompt
from rlad.data.knights_knaves.puzzle import Puzzle

_IFF_IN_PROMPTS, _IFF = "=", "?"


def show_working(puzzle: Puzzle, trace: str) -> str:
    """Expand a compact trace of a puzzle, correct or careless, with intermediate steps.

    Values and answer stay the same. In a careless trace the value of a statement therefore contradicts its intermediate
    steps, except for a bare `B is a knight`, which has none.
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
    """Return the length of the longest response, in tokens: all candidates with all statements, `=`, answer and end."""
    candidate, statement = num_people + 1, len("AF|TT")
    return int(2**num_people) * (candidate + num_people * statement + 1) + num_people + 1


def _split_values(text: str, num_people: int) -> tuple[str, str]:
    """Split after a candidate's last value, or after its contradiction `x`. Returns both parts."""
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
