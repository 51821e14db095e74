"""Prompt records."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from rlad.errors import DataError

if TYPE_CHECKING:
    pass


Message = dict[str, str]
"""One message of a chat: `role` and `content`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptRecord:
    """One prompt and what judges its responses.

    Attributes:
        id: unique in its source.
        prompt: text taken as it is, or chat messages that the tokenizer's chat template is applied to.
        task: which verifier judges responses.
        answer: what that verifier compares with.
        metadata: anything else, for example what evaluation groups its table by.

    Raises:
        DataError: an empty id or task, an empty prompt, or messages that are not a chat waiting for the assistant.
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
                raise DataError(f"{name} must be text that is not empty, got {value!r}")
        if not isinstance(self.metadata, dict):
            raise DataError(f"metadata must be a mapping, got {self.metadata!r}")
        if isinstance(self.prompt, str):
            if not self.prompt.strip():
                raise DataError("the prompt is empty")
        else:
            _check_messages(self.prompt)


def _check_messages(messages: Any) -> None:
    if not isinstance(messages, tuple) or not messages:
        raise DataError(f"prompt must be text or a list of messages, got {messages!r}")
    for message in messages:
        if (
            not isinstance(message, dict)
            or message.keys() != {"role", "content"}
            or not all(isinstance(part, str) for part in message.values())
        ):
            raise DataError(f"a message holds `role` and `content`, both text, got {message!r}")
    if messages[-1]["role"] == "assistant":
        raise DataError("the last message is the assistant's: a prompt ends where the model is to speak")


def dataset_fingerprint(records: Sequence[PromptRecord]) -> str:
    """Sixteen hexadecimal digits of what is trained on: ids, prompts, tasks and answers, in order. Metadata does not count."""
    digest = hashlib.blake2b(digest_size=8)
    for record in records:
        digest.update(
            json.dumps([record.id, record.prompt, record.task, record.answer], sort_keys=True).encode() + b"\n"
        )
    return digest.hexdigest()
