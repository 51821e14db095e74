"""The seeded order that prompts are trained in."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from rlad.errors import DataError

if TYPE_CHECKING:
    pass


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
