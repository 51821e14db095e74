"""Losses of teacher replicas and of the learner in simulated runs."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from pipelines.forecast.simulated import failures_of
from pipelines.forecast.step import Sizes
from pipelines.simulation.losses import LosableLearner, Losses, SimulatedTeacher
from pipelines.simulation.simulator import Failures, simulate
from pipelines.simulation.stand_ins import StandInLearner
from pipelines.simulation.workload import Lengths, PoolSizes, Speeds
from rlad.config import load_run_config
from rlad.testing.virtual_time import run_in_virtual_time

CONFIGS = Path(__file__).parents[4] / "configs"
SPEEDS = Speeds(
    token_s=0.01, slots=8, teacher_token_s=1.0, verdict_s=0.01, learner_token_s=5e-5, update_s=0.1, weights_s=0.1
)
NEVER = 1e6


def losses(*lifetimes_s: float, restart_s: float) -> Losses:
    return Losses(lifetimes_s=iter([*lifetimes_s, NEVER]), restart_s=restart_s)


@pytest.mark.parametrize(
    ("replicas", "ends_at"),
    [
        (1, [140, 180]),  # the replacement serves from 40 s on, and begins both groups anew
        (2, [40, 140]),  # the lost group waits for the other replica, which scores for 40 s
    ],
)
def test_groups_of_a_lost_replica_are_scored_anew(replicas: int, ends_at: list[float]) -> None:
    """Groups of 100 and 40 s; the replica with the first one is lost at 30 s for 10 s."""

    async def score_both() -> tuple[list[float], float, int]:
        teacher = SimulatedTeacher(SPEEDS, replicas, [losses(30, restart_s=10)])

        async def end_of(tokens: int) -> float:
            await teacher.score(None, num_tokens=tokens)
            return asyncio.get_running_loop().time()

        ends = await asyncio.gather(end_of(100), end_of(40))
        teacher.close()
        return list(ends), teacher.busy_s, teacher.num_lost

    ends, busy_s, num_lost = run_in_virtual_time(score_both())
    assert sorted(ends) == pytest.approx(ends_at)
    assert busy_s == pytest.approx(140)  # work that was lost is not counted
    assert num_lost == 1


class PacedLearner(StandInLearner):
    """Takes 10 s for a step, and commits every second one."""

    def __init__(self) -> None:
        self.committed = 0
        self.trained: list[int] = []

    async def run(self, steps: int, first: int = 0) -> None:
        for step in range(first, steps):
            await asyncio.sleep(10)
            self.trained.append(step)
            self.committed = (step + 1) // 2 * 2


def test_a_lost_learner_trains_again_from_its_newest_checkpoint() -> None:
    """Lost at 35 s, in the middle of step 3; back at 55 s with steps 0 and 1. Three steps are left."""
    learner = PacedLearner()

    async def train() -> float:
        await LosableLearner(learner, losses(35, restart_s=20)).run(5)
        return asyncio.get_running_loop().time()

    assert run_in_virtual_time(train()) == pytest.approx(85)
    assert learner.trained == [0, 1, 2, 2, 3, 4]


def test_a_run_that_loses_its_learner_trains_the_same_groups_later() -> None:
    config = load_run_config(
        CONFIGS / "smoke_cpu.yaml",
        ["training.steps=12", "training.prompts_per_step=8", "training.max_staleness=2", "rollout.group_size=4"],
    )
    lengths = Lengths(median=100, p99_over_median=10, longest=1000, group_size=4)
    speeds = Speeds(
        token_s=0.01, slots=8, teacher_token_s=1e-3, verdict_s=0.01, learner_token_s=1e-3, update_s=0.1, weights_s=0.1
    )

    def run(failures: Failures | None) -> tuple[float, list[set[str]], dict[str, int]]:
        found = simulate(
            config,
            lengths=lengths,
            speeds=speeds,
            sizes=PoolSizes(rollout=4, teacher=2, verifier=2),
            failures=failures,
        )
        return found.makespan_s, [{group.summary.uid for group in step.groups} for step in found.steps], found.lost

    whole_s, groups, _ = run(None)
    hurt_s, groups_again, lost = run(
        Failures(mean_between_s=NEVER, restart_s=10, teacher_between_s=60, learner_between_s=15)
    )
    assert groups_again == groups
    assert len(groups) == 12
    assert lost["learner"] >= 2
    assert lost["teacher"] >= 1
    assert lost["rollout"] == 0
    assert hurt_s > whole_s + 10 * lost["learner"]


def test_failures_of_a_run_are_spread_evenly_over_its_gpus() -> None:
    """24 GPUs with 24 failures a day: each GPU has one a day. A worker has 2 GPUs, a replica 4, and the learner 8."""
    config = load_run_config(
        CONFIGS / "qwen3_8b_math_30k.yaml",
        ["rollout.gpus_per_worker=2", "teacher.gpus_per_replica=4", "learner.sequence_parallel=1"],
    )
    sizes = Sizes(rollout=4, scorers={"teacher": 2}, learner=8)
    failures = failures_of(config, sizes, teachers=2, per_day=24, restart_s=60)
    assert failures.restart_s == 60
    assert failures.mean_between_s == pytest.approx(86400 / 2)
    assert failures.teacher_between_s == pytest.approx(86400 / 4)
    assert failures.learner_between_s == pytest.approx(86400 / 8)
