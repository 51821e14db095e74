"""What a teacher service asks of the engine that runs its model."""

from __future__ import annotations

from typing import Protocol

from rlad.contracts import Array


class Scorer(Protocol):
    """Gives the model's log-probability of every response token of a group. Groups that are asked for at once are computed together."""

    async def score(self, prompt_ids: Array, response_ids: Array, response_offsets: Array, temperature: float) -> Array:
        """Score one group.

        Args:
            prompt_ids: int32 [P], P at least 1.
            response_ids: int32 [N], the responses end to end.
            response_offsets: int64 [G + 1]; a response may be empty.
            temperature: that the responses were sampled at; logits are divided by it.

        Returns:
            float32 [N], nats. Not a number or infinite where the model gives that.

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
