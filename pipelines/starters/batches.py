"""Training batches of padded token ids, made from puzzles."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from pipelines.starters.tokenizer import END, PAD_ID, encode
from pipelines.starters.traces import show_working
from rlad.data.knights_knaves.compact import (
    careless_trace,
    misread_trace,
    render_prompt,
    solution_trace,
)
from rlad.data.knights_knaves.puzzle import Puzzle
from rlad.starters.recipes import Traces

IGNORED = -100
"""Target of positions without loss (PyTorch's default `ignore_index`)."""

_POOL = 2048


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """Puzzle with a response to imitate.

    Attributes:
        token_ids: Prompt and response, including the end of sequence.
        prompt_length: Length of the prompt, in tokens.
    """

    token_ids: list[int]
    prompt_length: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Batch of examples, padded on the right. Causal attention needs no mask for such padding.

    Attributes:
        token_ids: int64 [B, T].
        targets: int64 [B, T]: the next token if it belongs to the response, otherwise `IGNORED`.
    """

    token_ids: torch.Tensor
    targets: torch.Tensor


def make_examples(puzzles: Sequence[Puzzle], traces: Traces, seed: int) -> list[Example]:
    """Return one example per puzzle with a trace of one kind. Puzzles that the kind cannot answer have none."""
    rng = random.Random(f"{traces} traces:{seed}")
    examples = []
    for puzzle in puzzles:
        prompt, trace = render_prompt(puzzle), _trace(puzzle, traces, rng)
        if trace is not None:
            examples.append(
                Example(token_ids=encode(prompt + show_working(puzzle, trace) + END), prompt_length=len(prompt))
            )
    return examples


def _trace(puzzle: Puzzle, traces: Traces, rng: random.Random) -> str | None:
    match traces:
        case "correct":
            return solution_trace(puzzle)
        case "careless":
            return careless_trace(puzzle, rng)
        case _:
            return misread_trace(puzzle, traces)


def endless_batches(examples: Sequence[Example], *, tokens_per_step: int, seed: int) -> Iterator[Batch]:
    """Yield batches of at most `tokens_per_step` padded tokens, endlessly, in a new order for each epoch.

    A longer example has a batch of its own. Batches contain examples of similar length from a random pool, which limits
    padding and still varies the batches between epochs.
    """
    rng = random.Random(f"batches:{seed}")
    order = list(examples)
    while True:
        rng.shuffle(order)
        for start in range(0, len(order), _POOL):
            batches = list(
                _cut(sorted(order[start : start + _POOL], key=lambda example: len(example.token_ids)), tokens_per_step)
            )
            rng.shuffle(batches)
            yield from map(_pad, batches)


def _cut(examples: Sequence[Example], tokens_per_step: int) -> Iterator[list[Example]]:
    batch: list[Example] = []
    for example in examples:  # sorted by length, so each is the longest of its batch so far
        if batch and (len(batch) + 1) * len(example.token_ids) > tokens_per_step:
            yield batch
            batch = []
        batch.append(example)
    yield batch


def _pad(examples: Sequence[Example]) -> Batch:
    longest = max(len(example.token_ids) for example in examples)
    token_ids = torch.full((len(examples), longest), PAD_ID)
    targets = torch.full((len(examples), longest), IGNORED)
    for row, example in enumerate(examples):
        ids, start = torch.tensor(example.token_ids), example.prompt_length
        token_ids[row, : len(ids)] = ids
        targets[row, start - 1 : len(ids) - 1] = ids[start:]
    return Batch(token_ids=token_ids, targets=targets)
