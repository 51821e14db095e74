"""Warnings and the failure of a run whose engine and learner disagree."""

from __future__ import annotations

import logging
import math
from pathlib import Path

import pytest

from pipelines.run.logprob_gap import METRIC, GapVerdict, LogprobGapLimit
from rlad.config import load_run_config
from rlad.errors import EngineError

FINE, WARN, FAIL = GapVerdict.FINE, GapVerdict.WARN, GapVerdict.FAIL
SMOKE = Path(__file__).parents[4] / "configs" / "smoke_cpu.yaml"


@pytest.mark.parametrize(
    ("gaps", "verdicts"),
    [
        ([0.2, 0.21, 1.0, 1.01], [FINE, WARN, WARN, WARN]),
        ([1.01, 1.01, 1.01], [WARN, WARN, FAIL]),
        ([1.01, 1.01, 1.0, 1.01, 1.01, 1.01], [WARN, WARN, WARN, WARN, WARN, FAIL]),
        ([math.nan, math.nan, math.nan], [WARN, WARN, FAIL]),
        ([1.01, None, 1.01, 1.01], [WARN, FINE, WARN, FAIL]),
    ],
    ids=["bounds", "in a row", "interrupted", "not a number", "without trained tokens"],
)
def test_a_fifth_of_the_limit_warns_and_three_steps_above_it_fail(
    gaps: list[float | None], verdicts: list[GapVerdict]
) -> None:
    limit = LogprobGapLimit(1.0)
    assert [limit.judge(gap) for gap in gaps] == verdicts


def test_a_run_has_the_configured_limit_unless_its_weights_change_within_groups() -> None:
    assert LogprobGapLimit.of(load_run_config(SMOKE)).judge(0.021) is WARN
    for change in ("learner.max_logprob_gap=null", "training.max_staleness=1"):
        assert LogprobGapLimit.of(load_run_config(SMOKE, [change])).judge(9.0) is FINE


def test_the_third_step_above_the_limit_ends_the_run_with_remedies(caplog: pytest.LogCaptureFixture) -> None:
    limit = LogprobGapLimit(0.1)
    with caplog.at_level(logging.WARNING):
        for step in (4, 5):
            limit.check(step, {METRIC: 0.5})
    assert [record.getMessage() for record in caplog.records] == [
        f"step={step} learner/logprob_gap_mean=0.5 limit=0.1" for step in (4, 5)
    ]
    with pytest.raises(EngineError, match=r"above learner.max_logprob_gap \(0.1 nats\) in 3 steps in a row, last 0.5"):
        limit.check(6, {METRIC: 0.5})
