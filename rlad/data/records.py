"""Prompt records and their fingerprint."""

from __future__ import annotations

import hashlib
import json
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from rlad.errors import DataError

Message = dict[str, str]
"""Chat message with the keys `role` and `content`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptRecord:
    """Prompt and expected answer.

    Attributes:
        id: Identifier, unique in its prompt source.
        prompt: Text, which is encoded verbatim, or chat messages, to which the tokenizer's chat template is applied.
        task: Name of the task, which selects the verifier.
        answer: Expected answer, in the form that the verifier reads.
        metadata: Further values, for example the column by which evaluation groups its table.

    Raises:
        DataError: An id, task, answer or prompt is empty, or the messages do not end before the assistant's turn.
    """

    id: str
    prompt: str | tuple[Message, ...]
    task: str
    answer: str
    metadata: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("id", "task", "answer"):
            value = getattr(self, name)
            if not isinstance(value, str) or not value:
                raise DataError(f"{name} must be text and not empty, got {value!r}; correct the value")
        if not isinstance(self.metadata, dict):
            raise DataError(f"metadata must be a mapping, got {self.metadata!r}")
        if isinstance(self.prompt, str):
            if not self.prompt.strip():
                raise DataError(
                    f"the prompt is empty: {self.prompt!r}; expected text: correct the row, or set `invalid_rows: drop`"
                )
        else:
            _check_messages(self.prompt)
        texts = [self.prompt] if isinstance(self.prompt, str) else [message["content"] for message in self.prompt]
        for text in (self.id, self.task, self.answer, *texts):
            _check_encodable(text)


def _check_encodable(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"character {error.start + 1} of a text is the lone surrogate {text[error.start]!r}, which is not a "
            "character; correct the escape in the data, or set `invalid_rows: drop`"
        ) from error


def _check_messages(messages: Any) -> None:
    if not isinstance(messages, tuple) or not messages:
        raise DataError(
            f"prompt must be text or a list of messages, got {messages!r}; correct the row, name another column with "
            "`columns`, or set `invalid_rows: drop`"
        )
    for message in messages:
        if (
            not isinstance(message, dict)
            or message.keys() != {"role", "content"}
            or not all(isinstance(part, str) for part in message.values())
        ):
            raise DataError(
                f"a message must have exactly `role` and `content`, both text, got {message!r}; correct the row, "
                "or set `invalid_rows: drop`"
            )
    if not any(message["content"].strip() for message in messages if message["role"] != "system"):
        raise DataError(f"the prompt is empty: {messages!r} asks nothing; correct the row, or set `invalid_rows: drop`")
    if messages[-1]["role"] == "assistant":
        raise DataError(
            "the last message has role `assistant`; a prompt must end with a message of another role, "
            "which the model answers: remove the last message, or set `invalid_rows: drop`"
        )


def question_key(record: PromptRecord, suffix: str = "") -> bytes:
    """Return a digest of a prompt's question: its text without system messages, `suffix` and differences of whitespace.

    Prompts with equal keys ask the same, under any id and system prompt, as messages or as text.
    """
    texts = (
        [record.prompt]
        if isinstance(record.prompt, str)
        else [message["content"] for message in record.prompt if message["role"] != "system"]
    )
    words = unicodedata.normalize("NFC", "\n".join(texts).removesuffix(suffix)).split()
    return hashlib.blake2b(" ".join(words).encode(), digest_size=16).digest()


def dataset_fingerprint(records: Sequence[PromptRecord]) -> str:
    """Return sixteen hexadecimal digits of ids, prompts, tasks and answers, in order. Metadata is not covered."""
    digest = hashlib.blake2b(digest_size=8)
    for record in records:
        digest.update(
            json.dumps([record.id, record.prompt, record.task, record.answer], sort_keys=True).encode() + b"\n"
        )
    return digest.hexdigest()
