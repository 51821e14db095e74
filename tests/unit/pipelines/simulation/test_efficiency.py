"""Efficiency of many GPUs that work ahead with long-tailed lengths. docs/forecast.md has the figures for 1,024 GPUs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from transformers import Qwen3Config

from actors.experience.broker import StepReport
from pipelines.cli.forecast_options import pool_costs
from pipelines.forecast.simulated import DAY_S, SimulatedSplit, simulate_split, speeds_of
from pipelines.forecast.sizes import splits
from pipelines.forecast.step import Sizes
from pipelines.simulation.simulator import SimulatedRun
from pipelines.simulation.workload import PoolWork, Speeds
from pipelines.training.step_metrics import StepTimes
from pipelines.training.step_pipeline import TrainedStep
from rlad.config import load_run_config

CONFIGS = Path(__file__).parents[4] / "configs"
FAILURES_PER_DAY = 20


def directory_of(folder: Path, *, hidden: int, layers: int, feed_forward: int, heads: int) -> Path:
    shape = {"vocab_size": 151936, "num_key_value_heads": 8, "head_dim": 128, "tie_word_embeddings": False}
    Qwen3Config(
        hidden_size=hidden, num_hidden_layers=layers, intermediate_size=feed_forward, num_attention_heads=heads, **shape
    ).save_pretrained(folder)
    return folder


def test_long_tails_and_failures_cost_at_most_a_tenth_of_256_gpus(tmp_path: Path) -> None:
    """A quarter of the run of docs/forecast.md: 128 groups a step on 256 H200, two steps ahead.

    The time that a failure costs is measured at a rate that gives some in these minutes.
    """
    student = directory_of(tmp_path / "student", hidden=4096, layers=36, feed_forward=12288, heads=32)
    teacher = directory_of(tmp_path / "teacher", hidden=5120, layers=64, feed_forward=25600, heads=64)
    config = load_run_config(
        CONFIGS / "qwen3_8b_math_30k.yaml",
        [
            *(f"student.path={student}", f"teacher.path={teacher}", "weights.full_every=20"),
            *("training.max_staleness=2", "training.prompts_per_step=128", "training.max_refills=0"),
            *("rollout.tensor_parallel=8", "rollout.gpus_per_worker=8"),
            *("teacher.tensor_parallel=4", "teacher.gpus_per_replica=4"),
        ],
    )
    costs, lengths = pool_costs(config, "h200", median_tokens=None, tail=10, prompt_tokens=None, assume=None)
    best = splits(costs, 256, staleness=2)[0]
    undisturbed, disturbed = (
        simulate_split(
            config,
            best.sizes,
            lengths=lengths,
            speeds=speeds_of(costs, best.sizes),
            teachers=best.sizes.scorers["teacher"],
            failures_per_day=failures,
            restart_s=120,
            steps=7,  # two waves of three steps after the first step
        )
        for failures in (0, 120)
    )
    assert undisturbed.step_s == pytest.approx(best.time.seconds, rel=0.06)
    assert (undisturbed.run.lost_workers, disturbed.run.lost["rollout"] > 0) == (0, True)
    lost_s = (disturbed.run.makespan_s - undisturbed.run.makespan_s) / disturbed.run.lost_workers
    assert 0 < lost_s < lengths.longest * speeds_of(costs, best.sizes).token_s  # at most the longest response again
    assert undisturbed.efficiency * (1 - FAILURES_PER_DAY * lost_s / DAY_S) >= 0.9


def test_a_step_is_the_mean_over_whole_waves() -> None:
    """Steps two ahead end in waves of three. Of seven intervals the last six are two waves."""
    ends = [100.0, 110.0, 120.0, 200.0, 210.0, 220.0, 300.0, 310.0]
    steps = [
        TrainedStep(
            number=number,
            groups=[],
            num_abandoned=0,
            times=StepTimes(started_at=0.0, trained_at=end, weights_at=end),
            report=StepReport(version=number + 1, publications=[], metrics={}),
        )
        for number, end in enumerate(ends)
    ]
    work = PoolWork(rollout=80.0, teacher=160.0, verifier=1.0, learner=120.0, longest_response=500.0)
    run = SimulatedRun(makespan_s=310.0, work=work, busy={}, steps=steps, lost={})
    speeds = Speeds(
        token_s=1.0, slots=1, teacher_token_s=1.0, verdict_s=1.0, learner_token_s=1.0, update_s=1.0, weights_s=1.0
    )
    sizes = Sizes(rollout=1, scorers={}, learner=1)
    split = SimulatedSplit(sizes=sizes, devices=8, staleness=2, speeds=speeds, run=run)
    assert split.step_s == pytest.approx((310 - 110) / 6)
    assert split.efficiency == pytest.approx(160 / 8 / (200 / 6))
    assert replace(split, staleness=0).step_s == pytest.approx(210 / 7)
    assert replace(split, staleness=9).step_s == pytest.approx(210 / 7)  # no whole wave
