"""Problems of reasoning-gym's tasks as prompt records."""

from __future__ import annotations

import hashlib
import itertools
import os
import random
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from rlad.data.records import PromptRecord
from rlad.errors import DataError
from rlad.verifiers.reasoning_gym import create_reasoning_gym_dataset, encode_entry

Split = Literal["train", "evaluation"]

INSTRUCTION = (
    "Solve the problem the user gives you. Think step by step first, then write only the final answer, in the form the problem asks for, "
    "between <answer> and </answer>."
)

EVALUATION_SHARE = 0.25
"""As for Knights & Knaves: easy settings of a task have few problems, and some tasks take seconds to make one, so evaluation must not be rare."""

_CHUNK = 64
_STALLED_DRAWS = 2_000
"""After so many draws without a new problem of the split there are none left, or none that are worth waiting for."""

_ORDERED_BY_HASH = frozenset(
    {"isomorphic_strings", "knight_swap", "polynomial_multiplication", "ransom_note", "word_ladder"}
)
"""Tasks that draw from sets of text (reasoning-gym 0.1.25), so that a seed gives other problems in every process whose hashes are random."""


def split_of(question: str) -> Split:
    """Which split a problem belongs to: a hash of its question decides, whatever the seed and the settings it was made with."""
    return "evaluation" if int(question_digest(question), 16) < EVALUATION_SHARE * 2**64 else "train"


def question_digest(question: str) -> str:
    """Sixteen hexadecimal digits that name a problem."""
    return hashlib.blake2b(question.encode(), digest_size=8).hexdigest()


def generate_problems(
    dataset: str, *, size: int, split: Split, seed: int, settings: Mapping[str, Any]
) -> list[PromptRecord]:
    """`size` different problems of one split.

    The answer of a record is JSON of what the task's scorer needs (see `rlad.verifiers.reasoning_gym`); its task is the name of the dataset.

    Raises:
        ConfigError: reasoning-gym is not installed, has no such task, or the task refuses the settings.
        DataError: the task has fewer problems, or makes other ones in every process.
    """
    if dataset in _ORDERED_BY_HASH and os.environ.get("PYTHONHASHSEED", "random") == "random":
        raise DataError(
            f"reasoning-gym's task {dataset!r} makes other problems in every process, and a resumed run would not find its own again: "
            "set PYTHONHASHSEED=0 in the environment of the run"
        )
    records: dict[str, PromptRecord] = {}
    stalled = 0
    for entry in _entries(dataset, seed, settings):
        question = entry["question"]
        digest = question_digest(question)
        if split_of(question) != split or digest in records:
            stalled += 1
            if stalled >= _STALLED_DRAWS:
                raise DataError(
                    f"only {len(records)} different problems of reasoning-gym's task {dataset!r} were found in the {split} split, {size} were asked for: "
                    "ask for fewer, or change its settings"
                )
            continue
        stalled = 0
        records[digest] = PromptRecord(
            id=f"{dataset}-{digest}",
            prompt=({"role": "system", "content": INSTRUCTION}, {"role": "user", "content": question}),
            task=dataset,
            answer=encode_entry(entry, dataset=dataset, settings=settings),
            metadata={"dataset": dataset, "split": split},
        )
        if len(records) == size:
            break
    return list(records.values())


def _entries(dataset: str, seed: int, settings: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Entries without end. A dataset of reasoning-gym has a size, so one of another seed follows it."""
    for chunk in itertools.count():
        chunk_seed = random.Random(f"{seed}:{chunk}").getrandbits(31)
        made = create_reasoning_gym_dataset(dataset, {**settings, "seed": chunk_seed, "size": _CHUNK})
        for index in range(_CHUNK):
            yield made[index]
