"""Meter of the tokens and the time of a sampling engine. It needs no vLLM, so stand-ins use it too."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rlad.contracts import GenerationProgress


class GenerationMeter:
    """Counts generated tokens, and integrates the number of sequences that are decoded over time."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """
        Args:
            clock: Clock in seconds.
        """
        self._clock = clock
        self._tokens = 0
        self._busy_s = self._sequence_s = 0.0
        self._running, self._pauses = 0, 0
        self._since = 0.0

    def record(self, *, tokens: int, running: int) -> None:
        """Record the end of an iteration of the engine.

        Args:
            tokens: Tokens that the iteration has generated.
            running: Number of sequences that are decoded from now on.
        """
        self._advance()
        self._tokens += tokens
        self._running = running

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Count no time during the block, in which the engine updates its weights."""
        self._advance()
        self._pauses += 1
        try:
            yield
        finally:
            self._advance()
            self._pauses -= 1

    def progress(self) -> GenerationProgress:
        """Return the totals, the time since the last iteration included."""
        self._advance()
        return GenerationProgress(tokens=self._tokens, busy_s=self._busy_s, sequence_s=self._sequence_s)

    def _advance(self) -> None:
        now = self._clock()
        if self._running and not self._pauses:
            self._busy_s += now - self._since
            self._sequence_s += self._running * (now - self._since)
        self._since = now
