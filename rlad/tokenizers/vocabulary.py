"""Comparison of vocabularies: whether a teacher can score the tokens of a student, and which rows have no token."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

# Number of differing tokens that an error names.
_NAMED = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Vocabulary:
    """Tokens of a tokenizer.

    Attributes:
        ids: Id of each token, special and added ones included.
        model: Digest of the tokenization model (its type, and its merges or scores).
    """

    ids: Mapping[str, int]
    model: str

    @property
    def size(self) -> int:
        """Number of token ids: one more than the largest id. Later entries of an output layer are padding."""
        return max(self.ids.values(), default=-1) + 1

    def within(self, rows: int) -> Vocabulary:
        """Return the tokens with an entry in an output layer of this size. A model can use no others."""
        return Vocabulary(
            ids={token: token_id for token, token_id in self.ids.items() if token_id < rows}, model=self.model
        )


def vocabulary_of(tokenizer: Any) -> Vocabulary:
    """Return the vocabulary of a loaded tokenizer."""
    return Vocabulary(
        ids=dict(tokenizer.get_vocab()),
        model=hashlib.blake2b(
            json.dumps(tokenization_model(tokenizer), sort_keys=True).encode(), digest_size=8
        ).hexdigest(),
    )


def tokenization_model(tokenizer: Any) -> dict[str, Any]:
    """Return the type, and the merges or scores, of a fast tokenizer's model; empty for other tokenizers."""
    if not tokenizer.is_fast:
        return {}
    model: dict[str, Any] = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    vocabulary = model.pop("vocab", None)
    if isinstance(vocabulary, list):  # unigram: scores decide the segmentation
        model["scores"] = vocabulary
    return model


def scoring_problem(student: Vocabulary, teacher: Vocabulary, *, teacher_rows: int | None = None) -> str | None:
    """Return the reason why a teacher cannot score a student's tokens; None if it can.

    Every token of the student must have the same id at the teacher, which may have further tokens.

    Args:
        student: Vocabulary of the student.
        teacher: Vocabulary of the teacher.
        teacher_rows: Entries of the teacher's output layer; None if unknown.
    """
    differing = sorted(
        (token_id, token) for token, token_id in student.ids.items() if teacher.ids.get(token) != token_id
    )
    if differing:
        at_teacher = {token_id: token for token, token_id in teacher.ids.items()}
        named = ", ".join(
            f"{token_id} is {token!r} and {_quoted(at_teacher.get(token_id))}" for token_id, token in differing[:_NAMED]
        )
        more = f" and {len(differing) - _NAMED} more" if len(differing) > _NAMED else ""
        return f"{len(differing)} tokens of the student differ at the teacher: {named}{more}"
    if student.model != teacher.model:
        return "all token ids of the student agree, but the tokenization models (merges or scores) differ"
    if teacher_rows is not None and student.size > teacher_rows:
        return (
            f"the student has token ids up to {student.size - 1}, the teacher's output layer has {teacher_rows} entries"
        )
    return None


def _quoted(token: str | None) -> str:
    return "nothing" if token is None else repr(token)
