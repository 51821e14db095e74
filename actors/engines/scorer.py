"""What a teacher service asks of the engine that runs its model, and what it gets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from rlad.contracts import Array, TeacherSupport
from rlad.errors import EngineError


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TokenScores:
    """What an engine says about N tokens, the columns of `TeacherScores` as rows. Slices are views.

    Attributes:
        logprobs: float32 [N], of the sampled tokens.
        support_ids: int32 [N, K], the K likeliest tokens; None where only sampled tokens are scored, like the two below.
        support_logprobs: float32 [N, K].
        tail_logprobs: float32 [N], log of the probability outside the support.
    """

    logprobs: Array
    support_ids: Array | None = None
    support_logprobs: Array | None = None
    tail_logprobs: Array | None = None

    @classmethod
    def empty(cls, num_tokens: int, support_size: int) -> TokenScores:
        """Uninitialised, to be filled in."""
        if support_size == 0:
            return cls(logprobs=np.empty(num_tokens, np.float32))
        return cls(
            logprobs=np.empty(num_tokens, np.float32),
            support_ids=np.empty((num_tokens, support_size), np.int32),
            support_logprobs=np.empty((num_tokens, support_size), np.float32),
            tail_logprobs=np.empty(num_tokens, np.float32),
        )

    @classmethod
    def concatenate(cls, parts: Sequence[TokenScores]) -> TokenScores:
        """At least one part; all with supports of one size."""
        columns = [part._columns() for part in parts]
        return cls(**{name: np.concatenate([each[name] for each in columns]) for name in columns[0]})

    def __len__(self) -> int:
        return len(self.logprobs)

    def __getitem__(self, tokens: slice) -> TokenScores:
        return TokenScores(**{name: column[tokens] for name, column in self._columns().items()})

    def __setitem__(self, tokens: slice, scores: TokenScores) -> None:
        theirs = scores._columns()
        for name, column in self._columns().items():
            column[tokens] = theirs[name]

    def copy(self) -> TokenScores:
        return TokenScores(**{name: column.copy() for name, column in self._columns().items()})

    @property
    def support_size(self) -> int:
        """K; 0 where only sampled tokens are scored."""
        return 0 if self.support_ids is None else self.support_ids.shape[1]

    @property
    def num_values(self) -> int:
        """Entries of all columns, 4 bytes each."""
        return sum(column.size for column in self._columns().values())

    @property
    def is_complete(self) -> bool:
        """Every sampled token has a finite score, and no other entry is NaN; a token that the model rules out, or an empty tail, is -inf."""
        others = (self.support_logprobs, self.tail_logprobs)
        return bool(np.isfinite(self.logprobs).all()) and not any(
            column is not None and np.isnan(column).any() for column in others
        )

    def flat_columns(self) -> dict[str, Any]:
        """As `TeacherScores` has them."""
        return {
            "support_size": self.support_size,
            **{name: column.reshape(-1) for name, column in self._columns().items()},
        }

    def _columns(self) -> dict[str, Array]:
        columns = {
            name: getattr(self, name) for name in ("logprobs", "support_ids", "support_logprobs", "tail_logprobs")
        }
        return {name: column for name, column in columns.items() if column is not None}


class Scorer(Protocol):
    """Gives the model's log-probability of every response token of a group. Groups that are asked for at once are computed together."""

    async def score(
        self,
        prompt_ids: Array,
        response_ids: Array,
        response_offsets: Array,
        temperature: float,
        support: TeacherSupport = None,
    ) -> TokenScores:
        """Score one group.

        Args:
            prompt_ids: int32 [P], P at least 1.
            response_ids: int32 [N], the responses end to end.
            response_offsets: int64 [G + 1]; a response may be empty.
            temperature: that the responses were sampled at; logits are divided by it.
            support: how many of the model's own likeliest tokens to score beside each sampled one.

        Returns:
            Of N tokens, nats. Not a number or infinite where the model gives that.

        Raises:
            EngineError: the engine failed, or cannot score this group.
        """
        ...

    async def check_health(self) -> None:
        """Raises:
        EngineError: the engine is dead and will not come back.
        """
        ...

    def close(self) -> None:
        """Stop the engine. What is still being scored fails. May be called twice."""
        ...


def support_size(support: TeacherSupport, vocabulary: int) -> int:
    """K of a support.

    Raises:
        EngineError: the vocabulary has not so many tokens.
    """
    if support is None:
        return 0
    size = vocabulary if support == "full" else support
    if not 1 <= size <= vocabulary:
        raise EngineError(
            f"a support has 1 to {vocabulary} tokens, the teacher's vocabulary, or is `full`; got {support}"
        )
    return size
