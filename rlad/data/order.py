"""Seeded training order of prompts, of one source and of a mixture of sources."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import NamedTuple, Protocol

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Mixture:
    """Sources of a mixture.

    Attributes:
        names: Name of each source.
        weights: Weight of each source; None if each prompt occurs once an epoch.
        parts: Index of the source of each prompt.
    """

    names: tuple[str, ...]
    weights: tuple[float, ...] | None
    parts: tuple[int, ...]

    def select(self, records: Sequence[int]) -> Mixture:
        """Return the mixture of these prompts, which may occur several times."""
        return replace(self, parts=tuple(self.parts[record] for record in records))

    @property
    def sizes(self) -> tuple[int, ...]:
        """Number of prompts of each source."""
        return tuple(np.bincount(np.asarray(self.parts, dtype=np.int64), minlength=len(self.names)).tolist())

    @property
    def entries(self) -> tuple[int, ...]:
        """Number of entries of each source in an epoch, which has as many entries as there are prompts.

        Shares are rounded to whole entries, those with the largest remainder up.

        Raises:
            DataError: A source has no prompts, or its weight is too small for one entry an epoch.
        """
        sizes = self.sizes
        if (empty := [name for name, size in zip(self.names, sizes, strict=True) if size == 0]) and self.parts:
            raise DataError(
                f"part {empty[0]!r} of the mixture has no prompts to train on, so its share cannot be filled; check "
                "what was left out, or remove the part"
            )
        if self.weights is None:
            return sizes
        shares = np.asarray(self.weights) / sum(self.weights) * len(self.parts)
        entries = np.floor(shares).astype(np.int64)
        by_remainder = np.argsort(entries - shares, kind="stable")
        entries[by_remainder[: len(self.parts) - int(entries.sum())]] += 1
        if 0 in entries:
            name = self.names[int(np.argmin(entries))]
            raise DataError(
                f"part {name!r} of the mixture has a weight for less than one of the {len(self.parts)} entries of an "
                "epoch; raise its weight, or remove the part"
            )
        return tuple(entries.tolist())


class TrainingOrder(Protocol):
    """Training order of prompts. Every entry is a pure function of its number, so a run can resume at any entry."""

    def turn(self, turn: int) -> ScheduledPrompt:
        """Return entry `turn` of the order, counted from 0 across epochs."""
        ...


def training_order(num_prompts: int, seed: int, mixture: Mixture | None = None) -> TrainingOrder:
    """Return the order of a training set, which belongs to a mixture or to one source.

    Raises:
        DataError: There are no prompts, or those of the mixture have no order.
    """
    return PromptOrder(num_prompts, seed) if mixture is None else MixtureOrder(mixture, seed)


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
        _require_prompts(num_prompts)
        self.num_prompts = num_prompts
        self.seed = seed

    def turn(self, turn: int) -> ScheduledPrompt:
        """Return entry `turn` of the order, counted from 0 across epochs."""
        epoch, position = divmod(turn, self.num_prompts)
        return ScheduledPrompt(epoch, position, int(_permutation(self.num_prompts, self.seed, epoch)[position]))


class MixtureOrder:
    """Training order of a mixture: each source fills its share of an epoch, spread evenly over it.

    A source takes its prompts in permutations of its own, one after the other. A permutation that an epoch does not
    finish continues in the next epoch, so all prompts of a source occur equally often, give or take one. Of any number
    of consecutive entries, a source has its share, give or take one for each source.

    Every entry is a pure function of mixture, seed, epoch and position.

    Args:
        mixture: Sources and weights.
        seed: Seed of the order, any integer.

    Raises:
        DataError: There are no prompts, or a source would have no entry in an epoch.
    """

    def __init__(self, mixture: Mixture, seed: int) -> None:
        _require_prompts(len(mixture.parts))
        self.mixture = mixture
        self.seed = seed
        self._sizes, self._entries = mixture.sizes, mixture.entries
        parts = np.asarray(mixture.parts, dtype=np.int64)
        self._records = [np.flatnonzero(parts == part) for part in range(len(mixture.names))]
        self._shuffled: dict[int, tuple[int, npt.NDArray[np.int64]]] = {}

    def turn(self, turn: int) -> ScheduledPrompt:
        """Return entry `turn` of the order, counted from 0 across epochs."""
        epoch, position = divmod(turn, len(self.mixture.parts))
        part, entry = _interleaved(self._entries, self.seed, epoch)[position].tolist()
        passed, place = divmod(epoch * self._entries[part] + entry, self._sizes[part])
        return ScheduledPrompt(epoch, position, int(self._records_of(part, passed)[place]))

    def _records_of(self, part: int, passed: int) -> npt.NDArray[np.int64]:
        """Return the records of a source in the order of a pass. The last order of each source is kept."""
        kept = self._shuffled.get(part)
        if kept is None or kept[0] != passed:
            random = np.random.default_rng([self.seed % 2**64, passed, part + 1])
            kept = self._shuffled[part] = passed, random.permutation(self._records[part])
        return kept[1]


def _require_prompts(num_prompts: int) -> None:
    if num_prompts < 1:
        raise DataError(f"expected at least one prompt to train on, got {num_prompts}; check the prompt source")


@lru_cache(maxsize=4)
def _permutation(num_prompts: int, seed: int, epoch: int) -> npt.NDArray[np.int64]:
    # SeedSequence rejects negative numbers; the low 64 bits keep seeds distinct.
    return np.random.default_rng([seed % 2**64, epoch]).permutation(num_prompts)


@lru_cache(maxsize=4)
def _interleaved(entries: tuple[int, ...], seed: int, epoch: int) -> npt.NDArray[np.int64]:
    """Return part and entry of the part at each position of an epoch, int64 [positions, 2].

    The entries of a part lie at equal distances, from a random offset on.
    """
    starts = np.random.default_rng([seed % 2**64, epoch, 0, 1]).random(len(entries))
    places = np.concatenate([(np.arange(count) + start) / count for count, start in zip(entries, starts, strict=True)])
    parts = np.concatenate([np.full(count, part) for part, count in enumerate(entries)])
    numbers = np.concatenate([np.arange(count) for count in entries])
    order = np.lexsort((parts, places))
    return np.stack([parts[order], numbers[order]], axis=1)
