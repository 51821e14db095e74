"""Comparison of the generation speeds of a pool's workers, which finds one that is much slower than the others.

Each look reads what every worker has generated, and measures its speed over its last seconds of generation. Two speeds
are compared with the pool's median, and a slow worker is below a fraction of both:

- Tokens per second. It is low for a worker that has few sequences, such as the last long responses of a step.
- Tokens per second and sequence. It is low for a worker that has many sequences at once.

A healthy worker is low in one of them at most: with fewer sequences than the others each sequence is faster, and with
more it generates more tokens. Nothing here needs Ray, so that the simulator and the rollout pool compare by the same
rules.
"""

from __future__ import annotations

import asyncio
import logging
import statistics
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rlad.contracts import GenerationProgress
from rlad.failures import Action, Event, decide

if TYPE_CHECKING:
    from rlad.config.shared import FailureConfig

logger = logging.getLogger(__name__)

# Workers without which a median says nothing about one of them.
_MIN_WORKERS = 3
# Share of the window after which a worker's speed counts in the median. It is lower than that of a worker that is
# replaced: with short steps, healthy workers wait most of the time for a slow one.
_REFERENCE_SHARE = 0.1
_START = GenerationProgress(tokens=0, busy_s=0.0, sequence_s=0.0)

ReadProgress = Callable[[], Awaitable[Mapping[str, GenerationProgress | None]]]
"""Returns the progress of every ready worker, None of one that did not answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """Generation speed of a worker.

    Attributes:
        busy_s: Seconds of generation over which it was measured.
        tokens_per_s: Tokens per second.
        tokens_per_sequence_s: Tokens per second and sequence.
    """

    busy_s: float
    tokens_per_s: float
    tokens_per_sequence_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class SlowWorker:
    """A worker that is too slow, with the pool's median."""

    name: str
    speed: Speed
    median: Speed

    @property
    def reason(self) -> str:
        """Why it is given up."""
        speed, median = self.speed, self.median
        return (
            f"it is slow: in {speed.busy_s:.0f} s of generation it had {speed.tokens_per_s:.3g} tokens/s and "
            f"{speed.tokens_per_sequence_s:.3g} tokens/s for each sequence; the medians of its pool are "
            f"{median.tokens_per_s:.3g} and {median.tokens_per_sequence_s:.3g}"
        )


def slow_worker(speeds: Mapping[str, Speed], *, fraction: float, window_s: float) -> SlowWorker | None:
    """Return the slowest worker that is to be replaced, if there is one.

    Args:
        speeds: Measured speeds by worker.
        fraction: Fraction of the pool's median below which a worker is slow.
        window_s: Seconds of generation up to which nothing is decided.
    """
    compared = {name: each for name, each in speeds.items() if each.busy_s >= _REFERENCE_SHARE * window_s}
    if len(compared) < _MIN_WORKERS:
        return None
    median = Speed(
        busy_s=statistics.median(each.busy_s for each in compared.values()),
        tokens_per_s=statistics.median(each.tokens_per_s for each in compared.values()),
        tokens_per_sequence_s=statistics.median(each.tokens_per_sequence_s for each in compared.values()),
    )
    slow = [
        SlowWorker(name=name, speed=each, median=median)
        for name, each in compared.items()
        if each.tokens_per_s < fraction * median.tokens_per_s
        and each.tokens_per_sequence_s < fraction * median.tokens_per_sequence_s
        and decide(Event.WORKER_SLOW, happened=each.busy_s, budget=window_s) is Action.REPLACE
    ]
    return min(slow, key=lambda worker: worker.speed.tokens_per_s, default=None)


class SpeedComparison:
    """Measures the speeds of a pool's workers from their progress."""

    def __init__(self, *, fraction: float, window_s: float) -> None:
        """
        Args:
            fraction: Fraction of the pool's median below which a worker is slow.
            window_s: Seconds of generation over which a speed is measured.
        """
        self._fraction, self._window_s = fraction, window_s
        # Progress at the looks that are needed, oldest first.
        self._looks: dict[str, deque[GenerationProgress]] = {}

    def look(self, progress: Mapping[str, GenerationProgress | None]) -> SlowWorker | None:
        """Record the progress of all ready workers, and return the slowest one that is to be replaced.

        Args:
            progress: Progress by worker; None of a worker that did not answer, whose last speed counts.
        """
        self._looks = {name: self._looks.get(name, deque([_START])) for name in progress}
        for name, reported in progress.items():
            if reported is not None:
                self._record(self._looks[name], reported)
        speeds = {name: speed for name, looks in self._looks.items() if (speed := _speed(looks)) is not None}
        return slow_worker(speeds, fraction=self._fraction, window_s=self._window_s)

    def _record(self, looks: deque[GenerationProgress], reported: GenerationProgress) -> None:
        if reported.busy_s == looks[-1].busy_s:
            return  # it had no work since
        looks.append(reported)
        while reported.busy_s - looks[1].busy_s > self._window_s:
            looks.popleft()


def _speed(looks: deque[GenerationProgress]) -> Speed | None:
    """Return the speed between the first and the last look; None if no time was spent on generation."""
    if (busy_s := looks[-1].busy_s - looks[0].busy_s) <= 0:
        return None
    tokens = looks[-1].tokens - looks[0].tokens
    return Speed(
        busy_s=busy_s,
        tokens_per_s=tokens / busy_s,
        tokens_per_sequence_s=tokens / (looks[-1].sequence_s - looks[0].sequence_s),
    )


def watch_speeds(
    failures: FailureConfig, *, read: ReadProgress, give_up: Callable[[SlowWorker], None]
) -> asyncio.Task[None]:
    """Compare the workers of a pool at every heartbeat, and give up at most one at a look.

    Args:
        failures: Settings.
        read: Reads the progress of the ready workers.
        give_up: Gives up a worker.

    Returns:
        The background task, to be cancelled. It ends at once if the settings replace no worker.
    """

    async def watch() -> None:
        comparison = SpeedComparison(fraction=failures.slow_worker_fraction, window_s=failures.slow_worker_window_s)
        while failures.slow_worker_fraction > 0:
            await asyncio.sleep(failures.heartbeat_s)
            slow = comparison.look(await read())
            if slow is not None:
                give_up(slow)

    task = asyncio.create_task(watch())
    task.add_done_callback(_log_failure)
    return task


def _log_failure(watching: asyncio.Task[None]) -> None:
    """Log that speeds are no longer compared. The run continues."""
    if not watching.cancelled() and (error := watching.exception()) is not None:
        logger.warning("slow workers are no longer replaced error=%s", error)
