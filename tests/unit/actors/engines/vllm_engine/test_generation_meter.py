"""Meter of an engine's generation, by hand values."""

from __future__ import annotations

from actors.engines.vllm_engine.generation_meter import GenerationMeter
from rlad.contracts import GenerationProgress


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_time_is_counted_for_running_sequences_only() -> None:
    """Idle until 100 s; 4 sequences for 2 s, 1 for 3 s, none for 50 s."""
    clock = Clock()
    meter = GenerationMeter(clock)
    assert meter.progress() == GenerationProgress(tokens=0, busy_s=0, sequence_s=0)
    meter.record(tokens=4, running=4)
    clock.now += 2
    meter.record(tokens=4, running=1)
    clock.now += 3
    meter.record(tokens=1, running=0)
    clock.now += 50
    assert meter.progress() == GenerationProgress(tokens=9, busy_s=5, sequence_s=11)


def test_time_of_an_iteration_that_has_not_ended_counts() -> None:
    clock = Clock()
    meter = GenerationMeter(clock)
    meter.record(tokens=2, running=2)
    clock.now += 20
    assert meter.progress() == GenerationProgress(tokens=2, busy_s=20, sequence_s=40)
    clock.now += 1
    assert meter.progress() == GenerationProgress(tokens=2, busy_s=21, sequence_s=42)


def test_time_of_a_weight_update_does_not_count() -> None:
    clock = Clock()
    meter = GenerationMeter(clock)
    meter.record(tokens=1, running=1)
    clock.now += 3
    with meter.paused():
        clock.now += 100
        assert meter.progress().busy_s == 3
        meter.record(tokens=1, running=2)
        clock.now += 100
    clock.now += 4
    assert meter.progress() == GenerationProgress(tokens=2, busy_s=7, sequence_s=11)
