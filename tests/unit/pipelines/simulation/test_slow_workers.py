"""Slow rollout workers in simulated runs: the real comparison of speeds, failure policy, router and step pipeline."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from pipelines.simulation.simulator import Failures, SimulatedRun, SlowWorkers, simulate
from pipelines.simulation.stand_ins import DecodingSlots
from pipelines.simulation.workload import Lengths, PoolSizes, Speeds
from rlad.config import RunConfig, load_run_config
from rlad.testing.virtual_time import run_in_virtual_time

SMOKE = Path(__file__).parents[4] / "configs" / "smoke_cpu.yaml"
LENGTHS = Lengths(median=100, p99_over_median=10, longest=1000, group_size=4)
# A step takes about a minute and a half, and generation is what takes the time.
SPEEDS = Speeds(
    token_s=0.2, slots=8, teacher_token_s=2e-4, verdict_s=0.2, learner_token_s=1e-3, update_s=2, weights_s=2
)
RESTART_S = 60.0


def run_config(*settings: str, max_staleness: int = 2) -> RunConfig:
    return load_run_config(
        SMOKE,
        [
            "training.steps=12",
            "training.prompts_per_step=24",
            "training.updates_per_step=2",
            f"training.max_staleness={max_staleness}",
            "rollout.group_size=4",
            "rollout.max_response_tokens=20000",
            "learner.micro_batch_tokens=80008",
            *settings,
        ],
    )


def simulated(
    config: RunConfig,
    factors: dict[int, float],
    *,
    lengths: Lengths = LENGTHS,
    speeds: Speeds = SPEEDS,
    failures: Failures | None = None,
) -> SimulatedRun:
    """Simulate four workers, some of which are slow. The bound is the work over four healthy ones."""
    return simulate(
        config,
        lengths=lengths,
        speeds=speeds,
        sizes=PoolSizes(rollout=4, teacher=2, verifier=2),
        failures=failures,
        slow=SlowWorkers(factors=factors, restart_s=RESTART_S),
    )


def trained(run: SimulatedRun) -> list[set[str]]:
    return [{group.summary.uid for group in step.groups} for step in run.steps]


@pytest.mark.parametrize("max_staleness", [0, 1, 2])
def test_makespan_with_one_worker_20_times_slower_is_at_most_1_3_of_a_healthy_pool(max_staleness: int) -> None:
    """With less staleness each step waits for its longest response: healthy workers do not reach the bound either."""
    config = run_config(max_staleness=max_staleness)
    healthy, replaced = simulated(config, {}), simulated(config, {0: 20.0})
    kept = simulated(run_config("failures.slow_worker_fraction=0", max_staleness=max_staleness), {0: 20.0})
    makespans = ", ".join(
        f"{name} {run.makespan_s:,.0f} s"
        for name, run in (("healthy", healthy), ("replaced", replaced), ("not replaced", kept))
    )
    print(f"max_staleness={max_staleness}: {makespans}, bound {healthy.work.bound:,.0f} s")
    assert [run.lost_workers for run in (healthy, replaced, kept)] == [0, 1, 0]
    assert trained(replaced) == trained(healthy)
    assert replaced.makespan_s <= 1.3 * healthy.makespan_s
    assert kept.makespan_s > 5 * healthy.makespan_s
    if max_staleness == 2:
        assert replaced.makespan_over_bound <= 1.3


@pytest.mark.parametrize("factor", [6.0, 1000.0])
def test_on_policy_run_loses_at_most_a_tenth_to_a_slow_worker(factor: float) -> None:
    """Each step waits for its longest response, so the makespan is far from the bound with healthy workers too."""
    config = run_config(max_staleness=0)
    healthy, run = simulated(config, {}), simulated(config, {2: factor})
    assert run.lost_workers == 1
    assert run.makespan_s <= 1.1 * healthy.makespan_s


def test_slow_worker_costs_a_window_and_two_heartbeats_where_a_step_takes_seconds() -> None:
    """The healthy workers generate for a few seconds of each step only, and wait for the slow one."""
    speeds = replace(SPEEDS, token_s=0.01, learner_token_s=5e-5, update_s=0.1, weights_s=0.1, verdict_s=0.01)
    config = run_config(max_staleness=0)
    healthy, run = simulated(config, {}, speeds=speeds), simulated(config, {0: 20.0}, speeds=speeds)
    assert run.lost_workers == 1
    failures = config.failures
    assert run.makespan_s - healthy.makespan_s <= failures.slow_worker_window_s + 2 * failures.heartbeat_s


def test_uniformly_slow_pool_replaces_nothing() -> None:
    run = simulated(run_config(), dict.fromkeys(range(4), 20.0))
    assert run.lost_workers == 0


@pytest.mark.parametrize("max_staleness", [0, 2])
def test_gpus_of_two_speeds_replace_nothing(max_staleness: int) -> None:
    """One worker of four, or two of them, at a quarter of the speed of the others."""
    config = run_config(max_staleness=max_staleness)
    assert [simulated(config, dict.fromkeys(slow, 4.0)).lost_workers for slow in ((3,), (0, 1))] == [0, 0]


@pytest.mark.parametrize("max_staleness", [0, 2])
def test_long_tails_replace_nothing(max_staleness: int) -> None:
    """Engines with room for all responses of a step. Most of the time they decode the few that take 100 times the
    median, and some engines have one of them more than others."""
    run = simulated(
        run_config(max_staleness=max_staleness),
        {},
        lengths=replace(LENGTHS, p99_over_median=100, longest=20_000),
        speeds=replace(SPEEDS, slots=64),
    )
    assert run.lost_workers == 0


def test_starting_workers_are_not_replaced() -> None:
    """Workers are lost and started again, each with new totals."""
    config, failures = run_config(), Failures(mean_between_s=600, restart_s=RESTART_S)
    compared = simulated(config, {}, failures=failures)
    alone = simulated(config.model_copy(update={"failures": off(config)}), {}, failures=failures)
    assert compared.lost_workers == alone.lost_workers > 3
    assert compared.makespan_s == alone.makespan_s


def off(config: RunConfig) -> object:
    return config.failures.model_copy(update={"slow_worker_fraction": 0.0})


def test_slow_node_costs_the_restart_budget_and_then_the_worker() -> None:
    """Every replacement is slow too. After the budget of 3 the pool continues with three workers. No group is lost."""
    config = run_config("rollout.max_restarts=3", "failures.max_abandoned_groups=0")
    run = simulated(config, dict.fromkeys((0, 4, 5, 6, 7, 8), 20.0))
    assert run.lost_workers == 4
    assert trained(run) == trained(simulated(config, {}))
    assert run.makespan_over_bound <= 4 / 3 * 1.3
    assert not {group.worker for group in run.steps[-1].groups} - {"rollout-1", "rollout-2", "rollout-3"}


def test_slots_report_the_tokens_of_unfinished_responses() -> None:
    """Two slots at 0.5 s a token: after 3 s, 6 tokens of the responses of 10 and 8, and none of the third."""

    async def decode() -> None:
        slots = DecodingSlots(replace(SPEEDS, slots=2, token_s=0.5))
        decoding = asyncio.create_task(slots.decode((10, 8, 4)))
        await asyncio.sleep(3)
        progress = slots.progress()
        assert (progress.tokens, progress.busy_s, progress.sequence_s) == (12, 3, 6)
        await decoding
        await asyncio.sleep(100)
        progress = slots.progress()  # the third takes the slot of the second from 4 s to 6 s
        assert (progress.tokens, progress.busy_s, progress.sequence_s) == (22, 6, 11)

    run_in_virtual_time(decode())
