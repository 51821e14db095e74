"""Prompt records, where they come from, and the seeded order they are trained in."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from rlad.errors import DataError

if TYPE_CHECKING:
    from rlad.config.models import PromptSource

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
        if not isinstance(message, dict) or message.keys() != {"role", "content"} or not all(isinstance(part, str) for part in message.values()):
            raise DataError(f"a message holds `role` and `content`, both text, got {message!r}")
    if messages[-1]["role"] == "assistant":
        raise DataError("the last message is the assistant's: a prompt ends where the model is to speak")


def load_prompts(source: PromptSource) -> list[PromptRecord]:
    """Generate or read the prompts of a source.

    Raises:
        DataError: too few distinct puzzles, or a file that cannot be read (naming the file and the line).
        ConfigError: reasoning-gym is not installed, has no such task, or the task refuses its settings.
    """
    if source.source == "knights_knaves":
        from rlad.data.knights_knaves.prompts import generate_prompts

        return generate_prompts(form=source.form, people=source.people, count=source.count, split=source.split, seed=source.seed)
    if source.source == "reasoning_gym":
        from rlad.data.reasoning_gym import generate_problems

        return generate_problems(source.dataset, size=source.size, split=source.split, seed=source.seed, settings=source.settings)
    from rlad.data.prompt_files import read_prompt_file

    return read_prompt_file(source.path, limit=source.limit, form=source.form)


def dataset_fingerprint(records: Sequence[PromptRecord]) -> str:
    """Sixteen hexadecimal digits of what is trained on: ids, prompts, tasks and answers, in order. Metadata does not count."""
    digest = hashlib.blake2b(digest_size=8)
    for record in records:
        digest.update(json.dumps([record.id, record.prompt, record.task, record.answer], sort_keys=True).encode() + b"\n")
    return digest.hexdigest()


class ScheduledPrompt(NamedTuple):
    """One turn in the training order.

    Attributes:
        epoch: from 0.
        position: place within the epoch.
        record: which prompt record has this turn.
    """

    epoch: int
    position: int
    record: int


class PromptOrder:
    """The order prompts are trained in: every epoch a permutation of all.

    Every turn is a pure function of (seed, epoch, position), so a run resumes anywhere.
    """

    def __init__(self, num_prompts: int, seed: int) -> None:
        if num_prompts < 1:
            raise DataError("there is no prompt to train on")
        self.num_prompts = num_prompts
        self.seed = seed

    def turn(self, turn: int) -> ScheduledPrompt:
        """Whose turn it is at place `turn` (from 0) of the order, which goes on from epoch to epoch."""
        epoch, position = divmod(turn, self.num_prompts)
        return ScheduledPrompt(epoch, position, int(_permutation(self.num_prompts, self.seed, epoch)[position]))


@lru_cache(maxsize=4)
def _permutation(num_prompts: int, seed: int, epoch: int) -> npt.NDArray[np.int64]:
    # SeedSequence takes no negative numbers; the low 64 bits keep every seed distinct.
    return np.random.default_rng([seed % 2**64, epoch]).permutation(num_prompts)
