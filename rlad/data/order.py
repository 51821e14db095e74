"""Seeded training order of prompts."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from rlad.errors import DataError


class ScheduledPrompt(NamedTuple):
    """Entry of the training order.

    Attributes:
        epoch: Epoch, from 0.
        position: Position within the epoch, from 0.
        record: Index of the prompt record.
    """

    epoch: int
    position: int
    record: int


class PromptOrder:
    """Training order of prompts: one permutation of all prompts per epoch.

    Every entry is a pure function of seed, epoch and position, so a run can resume at any entry.

    Args:
        num_prompts: Number of prompts, at least 1.
        seed: Seed of the permutations, any integer.

    Raises:
        DataError: `num_prompts` is below 1.
    """

    def __init__(self, num_prompts: int, seed: int) -> None:
        if num_prompts < 1:
            raise DataError(f"expected at least one prompt to train on, got {num_prompts}; check the prompt source")
        self.num_prompts = num_prompts
        self.seed = seed

    def turn(self, turn: int) -> ScheduledPrompt:
        """Return entry `turn` of the order, counted from 0 across epochs."""
        epoch, position = divmod(turn, self.num_prompts)
        return ScheduledPrompt(epoch, position, int(_permutation(self.num_prompts, self.seed, epoch)[position]))


@lru_cache(maxsize=4)
def _permutation(num_prompts: int, seed: int, epoch: int) -> npt.NDArray[np.int64]:
    # SeedSequence rejects negative numbers; the low 64 bits keep seeds distinct.
    return np.random.default_rng([seed % 2**64, epoch]).permutation(num_prompts)
