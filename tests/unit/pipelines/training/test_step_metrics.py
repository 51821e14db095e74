"""Metrics of a step with several tasks."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from actors.messages import GroupSummary
from pipelines.training.step_metrics import GroupRecord, GroupTimes, StepTimes, sampling_metrics
from rlad.contracts import Outcome
from rlad.testing.records import make_group, make_verdicts

TIMES = GroupTimes(issued_at=0.0, sampled_at=1.0, verified_at=1.5, scored_at=2.0)
STEP = StepTimes(started_at=0.0, trained_at=3.0, weights_at=4.0)


def record(task: str, rewards: Sequence[float], *, unjudged: int = 0) -> GroupRecord:
    """Return the record of a group whose first `unjudged` responses have no verdict."""
    group = make_group([[1, 2]] * len(rewards), task=task)
    outcomes = [Outcome.TIMEOUT] * unjudged + [Outcome.CORRECT] * (len(rewards) - unjudged)
    return GroupRecord(
        summary=GroupSummary.of(group),
        task=task,
        verdicts=make_verdicts(group, rewards, outcomes=outcomes),
        worker="rollout-0",
        times=TIMES,
        attempts=1,
    )


def test_run_with_several_tasks_has_the_reward_of_each() -> None:
    groups = [record("math", [1.0, 0.0]), record("math", [1.0, 1.0]), record("logic", [0.0, 0.5], unjudged=1)]
    metrics = sampling_metrics(0, groups, STEP, {})
    assert metrics["reward/mean_math"] == pytest.approx(0.75)
    assert metrics["reward/mean_logic"] == pytest.approx(0.5)
    assert metrics["reward/mean"] == pytest.approx(3.5 / 5)


def test_task_without_a_verdict_and_a_single_task_have_no_reward_of_their_own() -> None:
    unjudged = record("logic", [0.0, 0.0], unjudged=2)
    assert not [name for name in sampling_metrics(0, [record("math", [1.0]), unjudged], STEP, {}) if "logic" in name]
    assert not [name for name in sampling_metrics(0, [record("math", [1.0])], STEP, {}) if "math" in name]
