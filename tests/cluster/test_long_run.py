"""Steps leave nothing behind in the driver and the broker. `benchmarks.chaos.long_run` runs 500 of them."""

from __future__ import annotations

from pathlib import Path

from benchmarks.chaos.long_run import measure

STEPS = 30


async def test_references_and_descriptors_are_released_after_a_run(tmp_path: Path) -> None:
    result = await measure(STEPS, tmp_path)
    assert result.references <= 0
    assert {growth.role: growth.descriptors for growth in result.growths} == {"driver": 0, "broker": 0}
    assert (result.counts.steps, result.counts.lost, result.counts.twice) == (STEPS, 0, 0)
