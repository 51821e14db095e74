"""Knights & Knaves: reward 1 for the exact solution, else 0.

In sentences, the convention of Logic-RL, which the paper's K&K runs follow: the answer stands inside `<answer>` tags and gives every person
a role once. In compact notation it is the letters after `=`, one a person.

The prompt may or may not have opened `<think>` already, so what is judged is the text after the last `</think>`, if there is one. Whatever
could name several answers at once is unparseable, not a chance to be right: two answer blocks, a person named twice, a role without a person
of the puzzle.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict

from rlad.errors import DataError
from rlad.verifiers.response_text import after_thinking
from rlad.verifiers.verdict import CORRECT, UNPARSEABLE, WRONG, Verdict

_ANSWER_TAG = re.compile(r"</?answer>", re.IGNORECASE)
_MARKDOWN = re.compile(r"[*`#>|\\]+|(?<!\w)_{1,3}|_{1,3}(?!\w)")
_ROLE = r"(?P<role>knight|knave)\b"
_BETWEEN = r"(?:\s*(?:[:=(\-–—]|->|→|\bis\b|\bwas\b)\s*|\s+)(?:(?:an?|the)\s+)?"
# Between one person's role and the next person's name: numbering, punctuation, "and". Letters only as numbering, as in "b)".
_FILLER = re.compile(r"(?:[\s.,;:!()\[\]{}•·\-–—\d&\"']|\band\b|\b[a-h][.)])*", re.IGNORECASE)
_ANY_NAME = re.compile(rf"(?<!\w)(?P<name>[^\W\d_][\w'’-]*){_BETWEEN}{_ROLE}", re.IGNORECASE)
_ANY_ROLE = re.compile(r"\bkn(?:ight|ave)s?\b", re.IGNORECASE)


class KnightsKnavesVerifierConfig(BaseModel):
    """Settings of the Knights & Knaves verifier."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Literal["knights_knaves"]
    form: Literal["sentences", "compact"] = "sentences"

    def build(self) -> SentenceVerifier | CompactVerifier:
        return SentenceVerifier() if self.form == "sentences" else CompactVerifier()


@dataclass(frozen=True, slots=True)
class SentenceVerifier:
    """Judges answers such as `<answer>(1) Zoey is a knight\\n(2) Liam is a knave</answer>`."""

    def verify(self, response_text: str, answer: str | Mapping[str, Any]) -> Verdict:
        """Judge a response.

        Args:
            answer: the solution as text (`(1) Zoey is a knight`, one a line, or `Zoey is a knight, and ...`), as a mapping from names to
                `knight` / `knave` or True / False, or as the K&K set's `ground_truth` mapping with `solution_text_format`.

        Raises:
            DataError: `answer` is none of these.
        """
        solution = _read_solution(answer)
        block = _answer_block(response_text)
        roles = None if block is None else _read_roles(block, solution)
        if roles is None:
            return UNPARSEABLE
        return CORRECT if roles == solution else WRONG

    def answer_of(self, response_text: str) -> str | None:
        """Each person's role, by name, as in `liam: knave, zoey: knight`; None without an answer block or with a person named twice."""
        block = _answer_block(response_text)
        people = (
            []
            if block is None
            else [
                (person["name"].lower(), person["role"].lower())
                for person in _ANY_NAME.finditer(_MARKDOWN.sub(" ", block))
            ]
        )
        if not people or len({name for name, _ in people}) < len(people):
            return None
        return ", ".join(f"{name}: {role}" for name, role in sorted(people))


@dataclass(frozen=True, slots=True)
class CompactVerifier:
    """Judges answers such as `TT:FxTF:TF=TF`, with or without the end-of-sequence `$`."""

    def verify(self, response_text: str, answer: str) -> Verdict:
        """Judge a response against an answer such as `TF`.

        Raises:
            DataError: `answer` is not 2 to 8 letters T or F.
        """
        if not isinstance(answer, str) or not re.fullmatch("[TF]{2,8}", answer):
            raise DataError(f"the answer of a compact puzzle is 2 to 8 letters T or F, got {answer!r}")
        given = self.answer_of(response_text)
        if given is None or len(given) != len(answer):
            return UNPARSEABLE
        return CORRECT if given == answer else WRONG

    def answer_of(self, response_text: str) -> str | None:
        """The letters after the one `=`."""
        text = "".join(response_text.split())  # a tokenizer may put spaces between its tokens
        _, *given = text.removesuffix("$").split("=")
        return given[0] if len(given) == 1 and re.fullmatch("[TF]{2,8}", given[0]) else None


def _answer_block(response_text: str) -> str | None:
    """What the one pair of answer tags after the thinking encloses; None where there is no such pair, or thinking has not ended."""
    spoken = after_thinking(response_text)
    if spoken is None:
        return None
    tags = list(_ANSWER_TAG.finditer(spoken))
    if [tag[0].lower() for tag in tags] != ["<answer>", "</answer>"]:
        return None
    return spoken[tags[0].end() : tags[1].start()]


def _read_roles(block: str, solution: Mapping[str, str]) -> dict[str, str] | None:
    """Roles by name (both lower case) where the block gives each person of the puzzle exactly one, and nothing else; None otherwise."""
    text = _MARKDOWN.sub(" ", block)
    names = "|".join(sorted(map(re.escape, solution), key=len, reverse=True))
    roles: dict[str, str] = {}
    end = None
    for match in re.finditer(rf"(?<!\w)(?P<name>{names})(?!\w){_BETWEEN}{_ROLE}", text, re.IGNORECASE):
        name = match["name"].lower()
        before = text[end or 0 : match.start()]
        # A heading may come first if it ends in a colon and gives no role.
        is_heading = end is None and before.rstrip(" \n\t0123456789().-").endswith(":") and not _ANY_ROLE.search(before)
        if name in roles or not (is_heading or _FILLER.fullmatch(before)):
            return None
        roles[name] = match["role"].lower()
        end = match.end()
    if roles.keys() != solution.keys() or not _FILLER.fullmatch(text[end or 0 :]):
        return None
    return roles


def _read_solution(answer: object) -> dict[str, str]:
    """The solution as roles by name, both lower case."""
    if isinstance(answer, Mapping) and "solution_text_format" in answer:
        answer = answer["solution_text_format"]
    pairs: list[tuple[str, str]] = []
    if isinstance(answer, Mapping):
        pairs = [(str(name), _role(role)) for name, role in answer.items()]
    elif isinstance(answer, str):
        people = [person for person in re.split(r"[\n,]|\band\b", answer.rstrip(". \n")) if person.strip()]
        matches = [
            re.fullmatch(r"\s*(?:\(\d+\)\s*)?(\S.*?) is a (knight|knave)\s*", person, re.IGNORECASE)
            for person in people
        ]
        pairs = [(match[1], _role(match[2])) if match else ("", "") for match in matches]
    solution = {name.lower(): role for name, role in pairs}
    if len(solution) < 2 or len(solution) != len(pairs) or "" in solution or "" in solution.values():
        raise DataError(
            f"the answer of a puzzle gives each of at least 2 people one role, as in `(1) Zoey is a knight`, one a line; got {answer!r}"
        )
    return solution


def _role(value: object) -> str:
    """`knight` or `knave`; empty for anything else."""
    if isinstance(value, bool | np.bool_):
        return "knight" if value else "knave"
    return value.lower() if isinstance(value, str) and value.lower() in ("knight", "knave") else ""
