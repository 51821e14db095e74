"""The real step pipeline, broker and routing in simulated runs."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections import Counter
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from actors.experience.broker import ExperienceBroker
from actors.messages import SampledGroup, SampleRequest, VerifierResult
from pipelines.simulation.harness import StandInPools, group_uids, run_steps, stand_in_prompts
from pipelines.simulation.losses import SimulatedTeacher
from pipelines.simulation.simulator import (
    Failures,
    SimulatedRollout,
    SimulatedRun,
    SimulatedVerifiers,
    simulate,
    stand_in_result,
    stand_in_shard_policy,
)
from pipelines.simulation.stand_ins import DecodingSlots, InProcess, StandInLearner
from pipelines.simulation.workload import Lengths, PoolSizes, Speeds, work_of
from rlad.config import RunConfig, load_run_config
from rlad.errors import WorkerLostError
from rlad.ledger import GroupState, Ledger
from rlad.testing.virtual_time import StuckError, run_in_virtual_time

SMOKE = Path(__file__).parents[4] / "configs" / "smoke_cpu.yaml"
SIZES = PoolSizes(rollout=4, teacher=2, verifier=2)
LENGTHS = Lengths(median=100, p99_over_median=10, longest=1000, group_size=4)
# Generation is what takes the time, as in a well-sized run.
SPEEDS = Speeds(
    token_s=0.01, slots=8, teacher_token_s=1e-5, verdict_s=0.01, learner_token_s=5e-5, update_s=0.1, weights_s=0.1
)


def run_config(**training: Any) -> RunConfig:
    overrides = {"steps": 8, "prompts_per_step": 24, "updates_per_step": 2, **training}
    settings = [f"training.{name}={value}" for name, value in overrides.items()]
    return load_run_config(
        SMOKE,
        [*settings, "rollout.group_size=4", "rollout.max_response_tokens=1000", "learner.micro_batch_tokens=8000"],
    )


def allowing(config: RunConfig, *, abandoned: int) -> RunConfig:
    failures = config.failures.model_copy(update={"max_abandoned_groups": abandoned})
    return config.model_copy(update={"failures": failures})


def simulated(config: RunConfig, **changes: Any) -> SimulatedRun:
    return simulate(config, **{"lengths": LENGTHS, "speeds": SPEEDS, "sizes": SIZES} | changes)


def uids_by_step(run: SimulatedRun) -> list[set[str]]:
    return [{group.summary.uid for group in step.groups} for step in run.steps]


def test_virtual_hours_take_no_real_time() -> None:
    async def sleep() -> float:
        await asyncio.gather(asyncio.sleep(3600), asyncio.sleep(7200))
        return asyncio.get_running_loop().time()

    started = time.monotonic()
    assert run_in_virtual_time(sleep()) == pytest.approx(7200)
    assert time.monotonic() - started < 1


def test_an_engine_has_no_gap_between_two_responses_although_the_event_loop_is_late() -> None:
    async def three_in_two_slots() -> float:
        loop = asyncio.get_running_loop()
        engine = DecodingSlots(replace(SPEEDS, slots=2, token_s=0.04))
        started = loop.time()
        decoding = asyncio.create_task(engine.decode((10, 2, 10)))  # the third takes the second's slot after 0.08 s
        await asyncio.sleep(0.01)
        time.sleep(0.3)  # noqa: ASYNC251 - blocks the event loop when the second response ends
        await decoding
        return loop.time() - started

    assert 0.48 <= asyncio.run(three_in_two_slots()) < 0.65  # 0.7 if the third began when the loop noticed


def test_cancelling_a_response_frees_its_slot() -> None:
    async def cancel_one() -> float:
        engine = DecodingSlots(replace(SPEEDS, slots=1, token_s=1.0))
        long = asyncio.create_task(engine.decode((100,)))
        await asyncio.sleep(10)
        long.cancel()
        await engine.decode((5,))
        return asyncio.get_running_loop().time()

    assert run_in_virtual_time(cancel_one()) == pytest.approx(15)


def test_a_deadlocked_simulation_raises() -> None:
    async def wait() -> None:
        await asyncio.Event().wait()

    with pytest.raises(StuckError, match="every coroutine waits"):
        run_in_virtual_time(wait())


@pytest.mark.parametrize("staleness", [0, 1, 3])
@pytest.mark.parametrize("speed", [0.2, 1.0, 5.0])
def test_the_step_of_a_group_depends_only_on_the_order_of_prompts(staleness: int, speed: float) -> None:
    """Neither the speed of the engines nor the order in which groups finish changes it."""
    config = run_config(max_staleness=staleness)
    names = group_uids(config, stand_in_prompts(4 * 24))
    run = simulated(
        config, speeds=replace(SPEEDS, token_s=speed * SPEEDS.token_s), lengths=replace(LENGTHS, seed=int(speed * 10))
    )
    assert uids_by_step(run) == [set(names[start : start + 24]) for start in range(0, 8 * 24, 24)]


def test_token_staleness_reaches_but_never_exceeds_the_bound() -> None:
    for staleness in (0, 1, 3):
        run = simulated(run_config(max_staleness=staleness))
        ages = [step.number - group.summary.oldest_version for step in run.steps for group in step.groups]
        assert max(ages) == staleness
        assert min(ages) >= 0


def test_working_ahead_hides_all_other_work_behind_generation() -> None:
    # With other seeds the order of groups that end at the same time moves the makespan by 1%.
    lengths = replace(LENGTHS, seed=2)
    on_policy, ahead = simulated(run_config()), simulated(run_config(steps=60, max_staleness=2), lengths=lengths)
    assert on_policy.makespan_over_bound > 1.3
    assert ahead.makespan_over_bound <= 1.05
    assert ahead.work.bottleneck == "rollout"
    assert ahead.busy["rollout"] > 0.95


def test_no_schedule_is_faster_than_the_bound() -> None:
    for staleness, token_s, learner_token_s in ((0, 0.01, 1e-5), (2, 0.001, 1e-4), (4, 0.01, 1e-3)):
        run = simulated(
            run_config(max_staleness=staleness),
            speeds=replace(SPEEDS, token_s=token_s, learner_token_s=learner_token_s),
        )
        assert run.makespan_s >= run.work.bound


def test_a_teacher_faster_than_generation_costs_almost_nothing() -> None:
    config = run_config(max_staleness=2)

    def makespan(seed: int, sizes: PoolSizes) -> float:
        run = simulated(config, lengths=replace(LENGTHS, seed=seed), sizes=sizes)
        assert ("teacher" in run.busy) == (run.work.teacher > 0) == (sizes.teacher > 0)
        return run.makespan_s

    # For a single seed either may be faster: the order of two groups that end at the same time decides which others
    # wait.
    ratios = [makespan(seed, SIZES) / makespan(seed, replace(SIZES, teacher=0)) for seed in range(5)]
    assert statistics.median(ratios) == pytest.approx(1, abs=0.005)


def test_a_slow_learner_bounds_the_run_and_the_samplers_wait_for_it() -> None:
    run = simulated(run_config(max_staleness=2), speeds=replace(SPEEDS, learner_token_s=2e-3))
    assert run.work.bottleneck == "learner"
    assert run.busy["learner"] > 0.9
    assert run.busy["rollout"] < 0.5


def test_lost_workers_cost_time_but_no_group() -> None:
    config = run_config(max_staleness=1)
    whole, hurt = simulated(config), simulated(config, failures=Failures(mean_between_s=60, restart_s=20))
    assert hurt.lost_workers > 3
    assert hurt.makespan_s > whole.makespan_s
    assert uids_by_step(hurt) == uids_by_step(whole)
    assert sum(group.attempts > 1 for step in hurt.steps for group in step.groups) >= hurt.lost_workers / 2


class SomeEqual(SimulatedVerifiers):
    """Verifiers that find every fifth group correct throughout, so that it carries no training signal."""

    seen = 0

    async def verify(self, columns: Any, *, task: str, num_tokens: int) -> VerifierResult:
        verdict = await super().verify(columns, task=task, num_tokens=num_tokens)
        self.seen += 1
        group_size = len(verdict.rewards)
        return (
            stand_in_result(group_size, elapsed_s=verdict.elapsed_s, num_correct=group_size)
            if self.seen % 5 == 0
            else verdict
        )


class SomePoisonous(SimulatedRollout):
    """Rollout pool that loses a worker to every group of every 20th prompt."""

    requests: list[str] = []  # noqa: RUF012 - filled by the test that uses it

    async def sample(self, request: SampleRequest, *, priority: int) -> SampledGroup:
        if int(request.prompt_id.removeprefix("p")) % 20 == 0:
            self.requests.append(request.uid)
            raise WorkerLostError(f"worker lost to prompt {request.prompt_id}")
        return await super().sample(request, priority=priority)


async def run_until(
    config: RunConfig, ledger: Path, *, first: int, steps: int, sampler: type[SimulatedRollout] = SimulatedRollout
) -> None:
    """Run a driver on a ledger from version `first` until `steps` are trained, then cancel it."""
    broker = ExperienceBroker(str(ledger), stand_in_shard_policy(config), config.rollout.group_size)
    rollout = sampler(config, LENGTHS, SPEEDS, SIZES.rollout, None)
    verifiers = SomeEqual(SPEEDS, SIZES.verifier, LENGTHS.group_size)
    pools = StandInPools(
        rollout=rollout, verifiers=verifiers, teacher=SimulatedTeacher(SPEEDS, 2), update_weights=rollout.update_weights
    )
    learning = asyncio.create_task(StandInLearner(InProcess(broker), LENGTHS, SPEEDS).run(config.training.steps, first))
    prompts = stand_in_prompts(1000)
    driving = asyncio.create_task(
        run_steps(config, prompts, pools, InProcess(broker), clock=asyncio.get_running_loop().time)
    )
    while not driving.done() and (await broker.counts())["trained_steps"] < steps:
        await asyncio.sleep(0.5)
    for task in (learning, driving):
        if steps < config.training.steps:
            task.cancel()
    await asyncio.gather(learning, driving, return_exceptions=steps < config.training.steps)


@pytest.mark.parametrize("staleness", [0, 2])
def test_a_new_driver_after_steps_opened_ahead_trains_on_every_prompt_once(staleness: int, tmp_path: Path) -> None:
    """Replacements come after groups of steps opened ahead, so the used uids are no prefix of the order."""
    config = run_config(max_staleness=staleness, max_refills=8, updates_per_step=1)
    ledger = tmp_path / "ledger.sqlite"
    run_in_virtual_time(run_until(config, ledger, first=0, steps=3))
    book = Ledger(ledger, read_only=True)
    trained = book.counts().trained_steps
    book.close()
    assert 3 <= trained < config.training.steps
    run_in_virtual_time(run_until(config, ledger, first=trained, steps=config.training.steps))
    book = Ledger(ledger, read_only=True)
    counts = book.counts()
    book.close()
    assert counts.trained_steps == config.training.steps
    assert counts.states[GroupState.COMMITTED] == config.training.steps * config.training.prompts_per_step
    assert (counts.lost, counts.duplicated) == (0, 0)
    assert counts.states[GroupState.DROPPED] > 10
    assert counts.retried > 0


def test_groups_that_lose_every_worker_are_abandoned_and_replaced_once_for_all_drivers(tmp_path: Path) -> None:
    config = run_config(max_staleness=1, updates_per_step=1)
    config = allowing(config, abandoned=1000)
    ledger = tmp_path / "ledger.sqlite"
    SomePoisonous.requests = []
    run_in_virtual_time(run_until(config, ledger, first=0, steps=3, sampler=SomePoisonous))
    with closing(Ledger(ledger, read_only=True)) as book:
        before = book.counts()
    assert before.states[GroupState.ABANDONED] > 2
    run_in_virtual_time(
        run_until(config, ledger, first=before.trained_steps, steps=config.training.steps, sampler=SomePoisonous)
    )
    with closing(Ledger(ledger, read_only=True)) as book:
        counts = book.counts()
    assert counts.states[GroupState.COMMITTED] == config.training.steps * config.training.prompts_per_step
    assert (counts.lost, counts.duplicated) == (0, 0)
    attempts = Counter(SomePoisonous.requests)
    assert len(attempts) == counts.states[GroupState.ABANDONED]
    # A driver that ended in the middle of a group's attempts leaves the rest to the next one.
    assert sum(number == config.failures.max_group_attempts for number in attempts.values()) >= len(attempts) - 2


def test_one_group_too_many_ends_the_run_with_its_own_error(tmp_path: Path) -> None:
    config = run_config(max_staleness=0, updates_per_step=1)
    config = allowing(config, abandoned=2)
    ledger = tmp_path / "ledger.sqlite"
    with pytest.raises(WorkerLostError, match="worker lost to prompt"):
        run_in_virtual_time(run_until(config, ledger, first=0, steps=config.training.steps, sampler=SomePoisonous))
    with closing(Ledger(ledger, read_only=True)) as book:
        assert book.counts().states[GroupState.ABANDONED] == 2


def test_every_pass_takes_the_learner_s_time_and_counts_each_group_once() -> None:
    """8 steps of 24 groups: with 3 passes, three times the tokens and updates, and the same groups in each step."""
    once, thrice = (simulated(run_config(passes=passes)) for passes in (1, 3))
    assert uids_by_step(thrice) == uids_by_step(once)
    assert thrice.work.learner == pytest.approx(3 * once.work.learner)
    assert thrice.busy["learner"] * thrice.makespan_s == pytest.approx(3 * once.busy["learner"] * once.makespan_s)
    assert thrice.makespan_s > once.makespan_s


def test_work_by_hand() -> None:
    """Two groups of 2 responses with 30 tokens in total; the longest response has 12."""
    speeds = Speeds(
        token_s=2.0, slots=5, teacher_token_s=0.5, verdict_s=3.0, learner_token_s=0.1, update_s=4.0, weights_s=1.0
    )
    work = work_of([(3, 12), (10, 5)], speeds, PoolSizes(rollout=2, teacher=3, verifier=1), updates=2)
    assert work.rollout == pytest.approx(30 * 2.0 / 10)
    assert work.teacher == pytest.approx(30 * 0.5 / 3)
    assert work.verifier == pytest.approx(6.0)
    assert work.learner == pytest.approx(11.0)
    sizes = PoolSizes(rollout=2, teacher=3, verifier=1)
    assert work_of([(3, 12), (10, 5)], speeds, sizes, updates=4, passes=2).learner == pytest.approx(6.0 + 16.0)
    assert work.longest_response == pytest.approx(24.0)
    assert (work.bound, work.bottleneck) == (pytest.approx(24.0), "learner")


def test_lengths_have_the_given_median_and_tail() -> None:
    lengths = Lengths(median=100, p99_over_median=10, longest=100_000, group_size=8)
    drawn = sorted(length for number in range(2000) for length in lengths.of_group(f"g{number}"))
    assert drawn[len(drawn) // 2] == pytest.approx(100, rel=0.05)
    assert drawn[int(len(drawn) * 0.99)] == pytest.approx(1000, rel=0.1)
    assert lengths.of_group("g7") == lengths.of_group("g7")
    assert (
        max(length for number in range(500) for length in replace(lengths, longest=300).of_group(f"g{number}")) == 300
    )
