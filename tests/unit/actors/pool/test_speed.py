"""Comparison of generation speeds, by hand values."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import pytest

from actors.pool.speed import SlowWorker, Speed, SpeedComparison, slow_worker, watch_speeds
from rlad.config import FailureConfig
from rlad.contracts import GenerationProgress
from rlad.errors import EngineError
from rlad.testing import run_in_virtual_time


def speed(tokens_per_s: float, *, sequences: float = 10, busy_s: float = 61) -> Speed:
    """Return the speed of a worker that decodes some sequences at once."""
    return Speed(busy_s=busy_s, tokens_per_s=tokens_per_s, tokens_per_sequence_s=tokens_per_s / sequences)


def replaced(*speeds: Speed, fraction: float = 0.2) -> str | None:
    """Return the worker that is replaced; workers are named a, b, c, ..."""
    slow = slow_worker(dict(zip("abcdefgh", speeds, strict=False)), fraction=fraction, window_s=60)
    return None if slow is None else slow.name


def test_worker_below_the_fraction_of_the_median_is_replaced() -> None:
    """The median of 90, 100, 110 and the slow one is 95, a fifth of it 19."""
    assert replaced(speed(90), speed(110), speed(18.9), speed(100)) == "c"
    assert replaced(speed(90), speed(110), speed(19), speed(100)) is None
    assert replaced(speed(90), speed(110), speed(18.9), speed(100), fraction=0.19) is None


def test_slowest_of_several_slow_workers_is_replaced_first() -> None:
    """The median of 100, 100, 5 and 4 is 52.5, a fifth of it 10.5."""
    assert replaced(speed(100), speed(5), speed(4), speed(100)) == "c"


def test_reason_names_both_speeds_their_medians_and_the_time() -> None:
    slow = slow_worker({"a": speed(100), "b": speed(5), "c": speed(120)}, fraction=0.2, window_s=60)
    assert slow == SlowWorker(name="b", speed=speed(5), median=speed(100))
    assert slow.reason == (
        "it is slow: in 61 s of generation it had 5 tokens/s and 0.5 tokens/s for each sequence; "
        "the medians of its pool are 100 and 10"
    )


def test_nothing_is_replaced_up_to_the_window() -> None:
    for busy_s, name in ((59.0, None), (60.0, None), (60.1, "a")):
        assert replaced(speed(1, busy_s=busy_s), speed(100), speed(100)) == name


def test_three_measured_workers_are_needed() -> None:
    """A worker counts in the median after a tenth of the window."""
    slow = speed(1)
    assert replaced(slow, speed(100)) is None
    assert replaced(slow, speed(100), speed(100, busy_s=5.9)) is None
    assert replaced(slow, speed(100), speed(100, busy_s=6)) == "a"


def test_uniformly_slow_or_stuck_pool_replaces_nothing() -> None:
    assert replaced(speed(1), speed(1.1), speed(0.9), speed(1)) is None
    assert replaced(speed(0), speed(0), speed(0)) is None
    assert replaced(speed(100), speed(1), speed(1)) is None, "most are slow: the median is 1"


def test_worker_with_few_long_responses_is_not_slow() -> None:
    """A tail of 1 sequence, against 64 at once: 2% of the tokens, at twice the speed of each sequence."""
    assert replaced(speed(100, sequences=64), speed(100, sequences=64), speed(2, sequences=0.64)) is None


def test_worker_with_many_sequences_at_once_is_not_slow() -> None:
    """256 sequences, each at a tenth of the speed of the few that the others have."""
    assert replaced(speed(10, sequences=1), speed(10, sequences=1), speed(256, sequences=256)) is None


def test_speed_is_that_of_the_last_window() -> None:
    """Three workers generate 100 tokens/s, and one of them 10 from 100 s on. A window has the time between two looks
    that is just above 60 s: at 160 s from 90 s on, 1,600 tokens, 23 each second; at 170 s from 100 s on, 700 tokens."""
    comparison = SpeedComparison(fraction=0.2, window_s=60)

    def at(now: int) -> dict[str, GenerationProgress | None]:
        slow_tokens = 100 * min(now, 100) + 10 * max(0, now - 100)
        tokens = {"a": slow_tokens, "b": 100 * now, "c": 100 * now}
        return {name: GenerationProgress(tokens=each, busy_s=now, sequence_s=now * 4) for name, each in tokens.items()}

    found = {now: comparison.look(at(now)) for now in range(10, 200, 10)}
    slow = {now: each for now, each in found.items() if each is not None}
    assert min(slow) == 170
    assert slow[170].name == "a"
    assert slow[170].speed == Speed(busy_s=70, tokens_per_s=10, tokens_per_sequence_s=2.5)


def test_time_without_work_and_missing_answers_change_no_speed() -> None:
    comparison = SpeedComparison(fraction=0.2, window_s=60)
    fast = GenerationProgress(tokens=6100, busy_s=61, sequence_s=61)
    slow = GenerationProgress(tokens=60, busy_s=60, sequence_s=60)
    assert comparison.look({"a": slow, "b": fast, "c": fast}) is None
    for _ in range(100):
        assert comparison.look({"a": slow, "b": fast, "c": None}) is None
    slower = GenerationProgress(tokens=61, busy_s=61, sequence_s=61)
    assert comparison.look({"a": slower, "b": None, "c": fast}) is not None


def test_worker_that_left_the_pool_does_not_count() -> None:
    comparison = SpeedComparison(fraction=0.2, window_s=60)
    fast = GenerationProgress(tokens=6100, busy_s=61, sequence_s=61)
    slow = GenerationProgress(tokens=61, busy_s=61, sequence_s=61)
    assert comparison.look({"a": fast, "b": fast, "c": fast}) is None
    assert comparison.look({"a": fast, "d": slow}) is None


async def watched(failures: FailureConfig, rates: dict[str, float]) -> list[tuple[str, float]]:
    """Return the workers that are given up in 300 s, and when. Each generates tokens at its rate."""
    loop, given_up = asyncio.get_running_loop(), []

    async def read() -> Mapping[str, GenerationProgress]:
        now = loop.time()
        return {
            name: GenerationProgress(tokens=int(rate * now), busy_s=now, sequence_s=now) for name, rate in rates.items()
        }

    def give_up(slow: SlowWorker) -> None:
        given_up.append((slow.name, loop.time()))
        rates.pop(slow.name)

    watching = watch_speeds(failures, read=read, give_up=give_up)
    await asyncio.sleep(300)
    watching.cancel()
    return given_up


def test_watch_gives_up_slow_workers_one_at_a_look() -> None:
    """The looks at 60 s and before have no more than the window."""
    rates = {"a": 1.0, "b": 100.0, "c": 100.0, "d": 100.0, "e": 2.0}
    given_up = run_in_virtual_time(watched(FailureConfig(), rates))
    assert given_up == [("a", pytest.approx(70)), ("e", pytest.approx(80))]


def test_fraction_of_zero_gives_up_no_worker() -> None:
    rates = {"a": 0.0, "b": 100.0, "c": 100.0}
    assert run_in_virtual_time(watched(FailureConfig(slow_worker_fraction=0), rates)) == []


def test_watch_that_fails_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    async def read() -> Mapping[str, GenerationProgress]:
        raise EngineError("no such method")

    async def watch() -> None:
        await asyncio.wait({watch_speeds(FailureConfig(), read=read, give_up=print)}, timeout=20)

    run_in_virtual_time(watch())
    assert caplog.messages == ["slow workers are no longer replaced error=no such method"]
