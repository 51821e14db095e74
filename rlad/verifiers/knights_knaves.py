"""Knights & Knaves verifier: reward 1 for the exact solution, else 0.

In sentences, answers follow Logic-RL, as in the paper's K&K runs: the answer is inside `<answer>` tags and assigns
every person one role. In compact notation, the answer is the letters after `=`, one per person.

The prompt may already have opened `<think>`, so only the text after the last `</think>`, if any, is verified. A text
that could state several answers is unparseable: two answer blocks, a person named twice, or a role without a person of
the puzzle.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from rlad.errors import DataError
from rlad.verifiers.response_tags import TaggedVerifierConfig
from rlad.verifiers.response_text import after_thinking
from rlad.verifiers.verdict import CORRECT, UNPARSEABLE, WRONG, Verdict

_ANSWER_TAG = re.compile(r"</?answer>", re.IGNORECASE)
_MARKDOWN = re.compile(r"[*`#>|\\]+|(?<!\w)_{1,3}|_{1,3}(?!\w)")
_ROLE = r"(?P<role>knight|knave)\b"
_BETWEEN = r"(?:\s*(?:[:=(\-–—]|->|→|\bis\b|\bwas\b)\s*|\s+)(?:(?:an?|the)\s+)?"
# Text between one person's role and the next person's name: numbering, punctuation, "and". Letters only as numbering,
# such as "b)".
_FILLER = re.compile(r"(?:[\s.,;:!()\[\]{}•·\-–—\d&\"']|\band\b|\b[a-h][.)])*", re.IGNORECASE)
_ANY_NAME = re.compile(rf"(?<!\w)(?P<name>[^\W\d_][\w'’-]*){_BETWEEN}{_ROLE}", re.IGNORECASE)
_ANY_ROLE = re.compile(r"\bkn(?:ight|ave)s?\b", re.IGNORECASE)


class KnightsKnavesVerifierConfig(TaggedVerifierConfig):
    """Settings of the Knights & Knaves verifier."""

    name: Literal["knights_knaves"]
    form: Literal["sentences", "compact"] = "sentences"

    def build(self) -> SentenceVerifier | CompactVerifier:
        """Return the verifier of the form."""
        return SentenceVerifier() if self.form == "sentences" else CompactVerifier()


@dataclass(frozen=True, slots=True)
class SentenceVerifier:
    """Verifier of answers such as `<answer>(1) Zoey is a knight\\n(2) Liam is a knave</answer>`."""

    def verify(self, response_text: str, answer: str | Mapping[str, Any]) -> Verdict:
        """Verify a response.

        Args:
            response_text: The response, without its prompt.
            answer: The solution as text (`(1) Zoey is a knight`, one per line, or `Zoey is a knight, and ...`), as a
                mapping from names to `knight` / `knave` or True / False, or as the K&K set's `ground_truth` mapping
                with `solution_text_format`.

        Raises:
            DataError: `answer` has none of these forms.
        """
        solution = _read_solution(answer)
        block = _answer_block(response_text)
        roles = None if block is None else _read_roles(block, solution)
        if roles is None:
            return UNPARSEABLE
        return CORRECT if roles == solution else WRONG

    def response_for(self, answer: str) -> str:
        """Return a response with the solution in `<answer>` tags."""
        return f"<answer>{answer}</answer>"

    def answer_of(self, response_text: str) -> str | None:
        """Return each person's role, sorted by name, such as `liam: knave, zoey: knight`.

        Return None without an answer block, or if a person is named twice.
        """
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
    """Verifier of answers such as `TT:FxTF:TF=TF`, with or without the end-of-sequence `$`."""

    def verify(self, response_text: str, answer: str) -> Verdict:
        """Verify a response against an answer such as `TF`.

        Raises:
            DataError: `answer` is not 2 to 8 letters T or F.
        """
        if not isinstance(answer, str) or not re.fullmatch("[TF]{2,8}", answer):
            raise DataError(
                f"knights_knaves: the answer of a compact puzzle must be 2 to 8 letters T or F, got {answer!r}"
            )
        response_answer = self.answer_of(response_text)
        if response_answer is None or len(response_answer) != len(answer):
            return UNPARSEABLE
        return CORRECT if response_answer == answer else WRONG

    def response_for(self, answer: str) -> str:
        """Return a response with the letters after `=`."""
        return f"={answer}"

    def answer_of(self, response_text: str) -> str | None:
        """Return the letters after the only `=`; None if there are none or several."""
        text = "".join(response_text.split())  # a tokenizer may insert spaces between its tokens
        _, *answers = text.removesuffix("$").split("=")
        return answers[0] if len(answers) == 1 and re.fullmatch("[TF]{2,8}", answers[0]) else None


def _answer_block(response_text: str) -> str | None:
    """Return the content of the only pair of answer tags after the thinking.

    Return None if there is not exactly one pair, or if the thinking has not ended.
    """
    text = after_thinking(response_text)
    if text is None:
        return None
    tags = list(_ANSWER_TAG.finditer(text))
    if [tag[0].lower() for tag in tags] != ["<answer>", "</answer>"]:
        return None
    return text[tags[0].end() : tags[1].start()]


def _read_roles(block: str, solution: Mapping[str, str]) -> dict[str, str] | None:
    """Return roles by name, both in lower case.

    Return None unless the block assigns each person of the puzzle exactly one role and states nothing else.
    """
    text = _MARKDOWN.sub(" ", block)
    names = "|".join(sorted(map(re.escape, solution), key=len, reverse=True))
    roles: dict[str, str] = {}
    end = None
    for match in re.finditer(rf"(?<!\w)(?P<name>{names})(?!\w){_BETWEEN}{_ROLE}", text, re.IGNORECASE):
        name = match["name"].lower()
        before = text[end or 0 : match.start()]
        # A heading may precede the roles if it ends in a colon and contains no role.
        is_heading = end is None and before.rstrip(" \n\t0123456789().-").endswith(":") and not _ANY_ROLE.search(before)
        if name in roles or not (is_heading or _FILLER.fullmatch(before)):
            return None
        roles[name] = match["role"].lower()
        end = match.end()
    if roles.keys() != solution.keys() or not _FILLER.fullmatch(text[end or 0 :]):
        return None
    return roles


def _read_solution(answer: object) -> dict[str, str]:
    """Return the solution as roles by name, both in lower case."""
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
            "knights_knaves: the answer of a puzzle must assign one role to each of at least 2 people, such as "
            f"`(1) Zoey is a knight`, one per line; got {answer!r}"
        )
    return solution


def _role(value: object) -> str:
    """Return `knight` or `knave`; an empty string for any other value."""
    if isinstance(value, bool | np.bool_):
        return "knight" if value else "knave"
    return value.lower() if isinstance(value, str) and value.lower() in ("knight", "knave") else ""
