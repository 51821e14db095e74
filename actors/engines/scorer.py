"""Interface of the scoring engines of teachers, and the scores that they return."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from rlad.contracts import Array, TeacherSupport, finite_rows
from rlad.errors import ScoringRefusedError


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TokenScores:
    """Scores of N tokens, with the columns of `TeacherScores` as rows. Slices are views.

    The support columns are None where only sampled tokens are scored. With hidden states there are no others.

    Attributes:
        logprobs: Log-probabilities of the sampled tokens, float32 [N]; all NaN with hidden states.
        support_ids: The K most likely tokens at each position, int32 [N, K].
        support_logprobs: Log-probabilities of `support_ids`, float32 [N, K].
        tail_logprobs: Log of the probability outside the support, float32 [N].
        hidden_states: Last hidden states after the final norm, at the positions that predict the tokens, float32
            [N, H], or uint16 [N, H] with the bits of bfloat16.
    """

    logprobs: Array
    support_ids: Array | None = None
    support_logprobs: Array | None = None
    tail_logprobs: Array | None = None
    hidden_states: Array | None = None

    @classmethod
    def of_hidden_states(cls, hidden_states: Array) -> TokenScores:
        """Return scores that consist of hidden states, float32 or uint16 [N, H]."""
        return cls(logprobs=np.full(len(hidden_states), np.nan, np.float32), hidden_states=hidden_states)

    @classmethod
    def empty(cls, num_tokens: int, support_size: int) -> TokenScores:
        """Return uninitialized scores of N tokens with supports of size K, or without supports if K is 0."""
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
        """Concatenate one or more parts. All parts must have the same support size."""
        columns = [part._columns() for part in parts]
        return cls(**{name: np.concatenate([part[name] for part in columns]) for name in columns[0]})

    def __len__(self) -> int:
        return len(self.logprobs)

    def __getitem__(self, tokens: slice) -> TokenScores:
        return TokenScores(**{name: column[tokens] for name, column in self._columns().items()})

    def __setitem__(self, tokens: slice, scores: TokenScores) -> None:
        values = scores._columns()
        for name, column in self._columns().items():
            column[tokens] = values[name]

    def copy(self) -> TokenScores:
        return TokenScores(**{name: column.copy() for name, column in self._columns().items()})

    @property
    def support_size(self) -> int:
        """Support size K; 0 where only sampled tokens are scored."""
        return 0 if self.support_ids is None else self.support_ids.shape[1]

    @property
    def num_values(self) -> int:
        """Size of all columns in units of 4 bytes."""
        return sum(column.nbytes for column in self._columns().values()) // 4

    @property
    def is_complete(self) -> bool:
        """True if every sampled token has a finite score, or a finite hidden state, and no other entry is NaN.

        An entry of the support or the tail may be -inf: a token with probability 0, or an empty tail.
        """
        if self.hidden_states is not None:
            return bool(finite_rows(self.hidden_states).all())
        others = (self.support_logprobs, self.tail_logprobs)
        return bool(np.isfinite(self.logprobs).all()) and not any(
            column is not None and np.isnan(column).any() for column in others
        )

    def flat_columns(self) -> dict[str, Any]:
        """Return the columns in the form of `TeacherScores`, without `output_layer`."""
        return {
            "support_size": self.support_size,
            "hidden_size": 0 if self.hidden_states is None else self.hidden_states.shape[1],
            **{name: column.reshape(-1) for name, column in self._columns().items()},
        }

    def _columns(self) -> dict[str, Array]:
        names = ("logprobs", "support_ids", "support_logprobs", "tail_logprobs", "hidden_states")
        columns = {name: getattr(self, name) for name in names}
        return {name: column for name, column in columns.items() if column is not None}


class Scorer(Protocol):
    """Scoring engine: computes log-probabilities of response tokens. Concurrent calls are batched."""

    async def score(
        self,
        prompt_ids: Array,
        response_ids: Array,
        response_offsets: Array,
        temperature: float,
        support: TeacherSupport = None,
    ) -> TokenScores:
        """Score the responses of one group.

        Args:
            prompt_ids: Prompt tokens, int32 [P], P at least 1.
            response_ids: Concatenated responses, int32 [N].
            response_offsets: Start of each response and the end of the last, int64 [G + 1]. A response may be empty.
            temperature: Sampling temperature of the responses. Logits are divided by it.
            support: Number of most likely tokens to score at each position, `full` for the vocabulary,
                `hidden_states` for hidden states instead of log-probabilities, or None.

        Returns:
            Scores of the N response tokens in nats, NaN or infinite where the model returns that.

        Raises:
            EngineError: The engine failed, or cannot score this group.
        """
        ...

    async def check_health(self) -> None:
        """Check that the engine is alive.

        Raises:
            EngineError: The engine has died or was closed.
        """
        ...

    def close(self) -> None:
        """Stop the engine. Calls in progress fail. May be called more than once."""
        ...


def support_size(support: TeacherSupport, vocabulary: int) -> int:
    """Return the size K of a support; 0 for None and for hidden states.

    Raises:
        ScoringRefusedError: The size is not between 1 and the vocabulary size.
    """
    if support is None or support == "hidden_states":
        return 0
    size = vocabulary if support == "full" else support
    if not 1 <= size <= vocabulary:
        raise ScoringRefusedError(
            f"the support must be `full` or a number of tokens from 1 to {vocabulary}, the teacher's vocabulary size; "
            f"got {support}"
        )
    return size
