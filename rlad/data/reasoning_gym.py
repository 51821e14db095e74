"""Prompt records of reasoning-gym tasks."""

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
    "Solve the problem the user gives you. Think step by step first, then write only the final answer, "
    "in the form the problem asks for, between <answer> and </answer>."
)

EVALUATION_SHARE = 0.25
"""Share of the evaluation split.

Large, as for Knights & Knaves, because some tasks have few problems or take seconds per problem.
"""

_CHUNK = 64
_STALLED_DRAWS = 2_000
"""Number of consecutive draws without a new problem of the split after which generation stops."""

_ORDERED_BY_HASH = frozenset(
    {"isomorphic_strings", "knight_swap", "polynomial_multiplication", "ransom_note", "word_ladder"}
)
"""Tasks that draw from sets of text (reasoning-gym 0.1.25).

A seed yields other problems in every process with random hashes.
"""


def split_of(question: str) -> Split:
    """Return the split of a problem: a function of its question only, not of seed or settings."""
    return "evaluation" if int(question_digest(question), 16) < EVALUATION_SHARE * 2**64 else "train"


def question_digest(question: str) -> str:
    """Return sixteen hexadecimal digits that identify a problem."""
    return hashlib.blake2b(question.encode(), digest_size=8).hexdigest()


def generate_problems(
    dataset: str, *, size: int, split: Split, seed: int, settings: Mapping[str, Any]
) -> list[PromptRecord]:
    """Generate `size` distinct problems of one split.

    A record's answer is JSON with the values that the task's scorer needs (see `rlad.verifiers.reasoning_gym`). Its
    task is the name of the dataset.

    Raises:
        ConfigError: reasoning-gym is not installed, has no such task, or the task rejects the settings.
        DataError: The task has fewer problems, or yields other problems in every process.
    """
    if dataset in _ORDERED_BY_HASH and os.environ.get("PYTHONHASHSEED", "random") == "random":
        raise DataError(
            f"reasoning-gym's task {dataset!r} generates other problems in every process, "
            "so a resumed run would not find its problems again; set PYTHONHASHSEED=0 in the environment of the run"
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
                    f"found only {len(records)} distinct problems of reasoning-gym's task {dataset!r} in the {split} "
                    f"split, expected {size}; lower `size`, or change the task's settings"
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
    """Yield entries indefinitely. reasoning-gym datasets have a fixed size, so datasets with further seeds follow."""
    for chunk in itertools.count():
        chunk_seed = random.Random(f"{seed}:{chunk}").getrandbits(31)
        entries = create_reasoning_gym_dataset(dataset, {**settings, "seed": chunk_seed, "size": _CHUNK})
        for index in range(_CHUNK):
            yield entries[index]
