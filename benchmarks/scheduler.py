"""Scheduler benchmark: the real driver, broker, pools and Serve handle, with actors that sleep in place of engines.

    python -m benchmarks.scheduler --json OUT

The cluster has eight rollout workers, two teacher replicas, two verifiers and a learner. The 99th percentile of the
response lengths is ten times their median. The benchmark measures the cost of scheduling: the makespan over the lower
bound of any schedule, the cost of a teacher, a strictly on-policy step over its generation alone, and the number of
groups per second that the control plane moves when no work takes time.
"""

from __future__ import annotations

import asyncio
import logging
import statistics
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ray
import typer
from ray import ObjectRef, serve
from ray.actor import ActorHandle
from rich.console import Console

from actors.experience.broker import ExperienceBroker
from actors.messages import SampleRequest, VerifierResult
from actors.pool.pool import ActorPool
from actors.rollout.pool import RolloutPool
from actors.teacher.client import TeacherClient
from actors.teacher.serve import QUIET, short_pauses
from actors.verifier.pool import JudgingPool
from benchmarks.measure import JsonPath, Ratio, Result, show
from benchmarks.stand_ins.sleeping_actors import (
    GROUP_SIZE,
    LENGTHS,
    SPEEDS,
    SPEEDS_BY_TASK,
    StandInLearners,
    StandInTeacherServer,
    StandInVerifier,
    StandInWorker,
)
from pipelines.simulation.harness import StandInPools, group_uids, run_steps, stand_in_prompts
from pipelines.simulation.simulator import simulate, stand_in_shard_policy
from pipelines.simulation.workload import PoolSizes, PoolWork, work_of
from pipelines.training.deadlines import together
from rlad.config import RunConfig

SIZES = PoolSizes(rollout=8, teacher=2, verifier=2)
_TIMEOUT_S = 120.0
# Number of runs in which no work takes time; their median counts. The first one includes the first call of every
# handle.
_TIMES = 3
# The rate of a live run is measured over a window that begins when the pool has settled after a resize.
_WINDOW_S, _SETTLE_S = 1.0, 0.3


@dataclass(frozen=True, slots=True, kw_only=True)
class Judges:
    """Stand-in verifiers for the groups of every task."""

    pool: JudgingPool

    async def verify(self, columns: Any, *, task: str, num_tokens: int) -> VerifierResult:
        return await self.pool.verify(columns, num_tokens=num_tokens)


def run_config(*, steps: int, prompts_per_step: int, max_staleness: int, has_teacher: bool = True) -> RunConfig:
    """Return the configuration of a run whose models and prompts are not used."""
    puzzles = {"source": "knights_knaves", "people": {2: 1.0}, "count": 8}
    return RunConfig.model_validate(
        {
            "name": "scheduler-benchmark",
            "student": {"path": "nowhere"},
            **(
                {"teacher": {"path": "nowhere"}, "objective": {"name": "trrd"}}
                if has_teacher
                else {"objective": {"name": "grpo"}}
            ),
            "prompts": {**puzzles, "split": "train"},
            "verifiers": {task: {"name": "knights_knaves"} for task in SPEEDS_BY_TASK},
            "rollout": {
                "workers": SIZES.rollout,
                "group_size": GROUP_SIZE,
                "max_response_tokens": LENGTHS.longest,
                "max_sequences": SPEEDS.slots,
            },
            "learner": {"micro_batch_tokens": 8192},
            "training": {"steps": steps, "prompts_per_step": prompts_per_step, "max_staleness": max_staleness},
            "evaluation": {"prompts": {**puzzles, "split": "evaluation"}},
        }
    )


AHEAD = run_config(steps=16, prompts_per_step=32, max_staleness=3)


@asynccontextmanager
async def open_stand_ins(config: RunConfig) -> AsyncIterator[tuple[StandInPools, RolloutPool]]:
    """Start the real pools over actors that sleep."""
    rollout = RolloutPool(
        config.rollout.model_copy(update={"cpus_per_worker": 0.01}),
        model_path="nowhere",
        dtype="float32",
        seed=0,
        start_timeout_s=_TIMEOUT_S,
        run_id="scheduler-benchmark",
        updates_in_flight=True,
        worker=StandInWorker,
    )
    verifier = ray.remote(StandInVerifier).options(num_cpus=0)
    verifiers = ActorPool(
        name="verifier",
        size=SIZES.verifier,
        spawn=lambda _: verifier.remote(),
        prepare=None,
        max_restarts=0,
        start_timeout_s=_TIMEOUT_S,
        capacity=1,
    )
    judges = Judges(pool=JudgingPool(verifiers, processes_per_worker=1, deadline_s=_TIMEOUT_S, who="a verifier"))
    teacher, *_ = await together(asyncio.to_thread(_deploy_teacher), rollout.start(), verifiers.start())
    try:
        yield (
            StandInPools(rollout=rollout, verifiers=judges, teacher=teacher, update_weights=rollout.update_weights),
            rollout,
        )
    finally:
        await rollout.close()
        await verifiers.close()


def _deploy_teacher() -> TeacherClient:
    deployment = serve.deployment(StandInTeacherServer).options(
        num_replicas=SIZES.teacher,
        max_ongoing_requests=64,
        request_router_config=short_pauses(SIZES.teacher),
        ray_actor_options={"num_cpus": 0},
        logging_config=QUIET,
    )
    handle = serve.run(deployment.bind(), name="stand-in-teacher", route_prefix=None)
    return TeacherClient(
        handle=handle,
        app_name="stand-in-teacher",
        teacher="stand-in",
        tokenizer_fingerprint="stand-in",
        client="scheduler-benchmark",
        timeout_s=_TIMEOUT_S,
        max_retries=0,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadyRun:
    """Run whose broker and learner have started.

    All runs start before the first one is timed, because starting processes would take CPU time from the measurement.
    """

    config: RunConfig
    task: str
    broker: ActorHandle
    learning: ObjectRef

    async def timed(self, pools: StandInPools) -> float:
        """Execute the run over started stand-ins, once, and return its seconds."""
        prompts = stand_in_prompts(self.config.training.prompts_per_step * 4, task=self.task)
        teacher = pools.teacher if self.config.needs_teacher else None
        started = time.perf_counter()
        await run_steps(self.config, prompts, replace(pools, teacher=teacher), self.broker, clock=time.time)
        elapsed = time.perf_counter() - started
        await self.learning
        return elapsed


async def get_ready(config: RunConfig, learners: ActorHandle, folder: str, task: str = "timed") -> ReadyRun:
    """Start a run's broker and learner."""
    ledger = Path(tempfile.mkdtemp(dir=folder)) / "ledger.sqlite"
    broker = (
        ray.remote(ExperienceBroker).options(num_cpus=0).remote(str(ledger), stand_in_shard_policy(config), GROUP_SIZE)
    )
    learning = learners.run.remote(broker, task, config.training.steps)
    await broker.wait_started.remote()
    return ReadyRun(config=config, task=task, broker=broker, learning=learning)


async def generation_alone(config: RunConfig, pools: StandInPools) -> float:
    """Return the seconds in which the rollout workers sample a run's groups step by step, without other stages."""
    names = group_uids(config, stand_in_prompts(config.training.prompts_per_step * 4))
    size, started = config.training.prompts_per_step, time.perf_counter()
    for step in range(config.training.steps):
        await together(
            *(
                pools.rollout.sample(_request(name, config), priority=step)
                for name in names[step * size : (step + 1) * size]
            )
        )
    return time.perf_counter() - started


async def rates_while_resized(run: ReadyRun, pools: StandInPools, rollout: RolloutPool) -> dict[int, list[float]]:
    """Measure the tokens per second of a live run with one rollout worker, after scaling to three, and back to one.

    Returns:
        Rates by number of workers, in the order of measurement.
    """
    rates: dict[int, list[float]] = {1: [], 3: []}

    def generated() -> int:
        return sum(worker.generated_tokens for worker in rollout.stats())

    async def until_it_has(workers: int) -> None:
        rollout.resize(workers)
        while (state := rollout.state()).ready != workers or state.draining:
            await asyncio.sleep(0.05)

    async def resized(workers: int) -> float:
        await until_it_has(workers)
        await asyncio.sleep(_SETTLE_S)
        before = generated()
        await asyncio.sleep(_WINDOW_S)
        return (generated() - before) / _WINDOW_S

    await until_it_has(1)
    before = generated()
    running = asyncio.create_task(run.timed(pools))
    while generated() == before:
        await asyncio.sleep(0.05)
    for workers in (1, 3, 1):
        rates[workers].append(await resized(workers))
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    return rates


def _request(name: str, config: RunConfig) -> SampleRequest:
    [tokens] = stand_in_prompts(1).token_ids
    return SampleRequest(
        uid=name,
        attempt=0,
        prompt_id="p0",
        task="timed",
        answer="-",
        prompt_ids=tokens,
        num_responses=GROUP_SIZE,
        max_response_tokens=config.rollout.max_response_tokens,
        temperature=1.0,
        seed=None,
    )


async def measure(console: Console, simulated_s: float) -> Result:
    strict = run_config(steps=2, prompts_per_step=96, max_staleness=0)
    empty = run_config(steps=3, prompts_per_step=128, max_staleness=2)
    endless = run_config(steps=200, prompts_per_step=32, max_staleness=3)
    work, groups = _work(AHEAD), empty.training.steps * empty.training.prompts_per_step

    def report(text: str) -> None:
        console.print(text, highlight=False, soft_wrap=True)

    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        async with open_stand_ins(AHEAD) as (pools, rollout):
            learners = ray.remote(StandInLearners).options(num_cpus=0).remote()
            *at_once, ahead, without_teacher, on_policy, resized = await together(
                *(get_ready(empty, learners, folder, "at_once") for _ in range(_TIMES)),
                *(get_ready(config, learners, folder) for config in (AHEAD, _without_teacher(AHEAD), strict, endless)),
            )
            report(f"stand-ins are up ({time.perf_counter() - started:.0f} s)")
            empty_s = [await run.timed(pools) for run in at_once]
            report(f"nothing takes time: {groups} groups in {', '.join(f'{seconds:.1f}' for seconds in empty_s)} s")
            makespan_s = await ahead.timed(pools)
            report(f"working ahead: {makespan_s:.1f} s, the bound is {work.bound:.1f} s ({work.bottleneck})")
            grpo_s = await without_teacher.timed(pools)
            report(f"the same without a teacher: {grpo_s:.1f} s")
            alone_s, strict_s = await generation_alone(strict, pools), await on_policy.timed(pools)
            report(f"strictly on-policy: {strict_s:.2f} s, generation alone {alone_s:.2f} s")
            rates = await rates_while_resized(resized, pools, rollout)
            report(
                f"tokens a second with 1, 3 and 1 workers: {rates[1][0]:,.0f}, {rates[3][0]:,.0f}, {rates[1][1]:,.0f}"
            )
    figures: dict[str, Any] = {
        "makespan_s": makespan_s,
        "bound_s": work.bound,
        "bottleneck": work.bottleneck,
        "simulated_makespan_s": simulated_s,
        "grpo_s": grpo_s,
        "on_policy_s": strict_s,
        "generation_alone_s": alone_s,
        "at_once_s": empty_s,
        "pool_seconds": {
            "rollout": work.rollout,
            "teacher": work.teacher,
            "verifier": work.verifier,
            "learner": work.learner,
        },
    }
    return Result(
        benchmark="scheduler",
        ratios=[
            Ratio(
                name="makespan_over_bound",
                value=makespan_s / work.bound,
                target=1.05,
                means="a run that works ahead, over the lower bound of any schedule",
            ),
            Ratio(
                name="rlad_over_grpo",
                value=makespan_s / grpo_s,
                target=1.02,
                means="that run over one without a teacher",
            ),
            Ratio(
                name="on_policy_over_generation",
                value=strict_s / alone_s,
                target=1.10,
                means="strictly on-policy steps over their generation alone",
            ),
            Ratio(
                name="groups_per_second",
                value=groups / statistics.median(empty_s),
                target=200,
                side="at least",
                means="groups moved when no work takes time",
            ),
            Ratio(
                name="rate_of_three_workers_over_one",
                value=rates[3][0] / rates[1][0],
                means="a live run's generation, scaled from 1 worker to 3",
            ),
            Ratio(
                name="rate_shrunk_over_before",
                value=rates[1][1] / rates[1][0],
                means="a live run's generation, scaled back to 1 worker",
            ),
            Ratio(
                name="simulated_over_measured",
                value=simulated_s / makespan_s,
                means="the simulator's makespan over the measured one",
            ),
        ],
        figures=figures,
        settings={"sizes": str(SIZES), "lengths": str(LENGTHS), "speeds": str(SPEEDS)},
    )


def _work(config: RunConfig) -> PoolWork:
    groups = [
        LENGTHS.of_group(name) for name in group_uids(config, stand_in_prompts(config.training.prompts_per_step * 4))
    ]
    return work_of(groups, SPEEDS, SIZES, updates=config.training.steps)


def _without_teacher(config: RunConfig) -> RunConfig:
    training = config.training
    return run_config(
        steps=training.steps,
        prompts_per_step=training.prompts_per_step,
        max_staleness=training.max_staleness,
        has_teacher=False,
    )


def main(json_path: JsonPath = None) -> None:
    """Measure the cost of scheduling with engines that sleep. Takes under a minute."""
    console = Console()
    simulated_s = simulate(AHEAD, lengths=LENGTHS, speeds=SPEEDS, sizes=SIZES).makespan_s
    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    ray.init("local", num_cpus=1, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    try:
        serve.start(proxy_location="Disabled", logging_config={"log_level": "ERROR", "enable_access_log": False})
        show(asyncio.run(measure(console, simulated_s)), json_path, console)
    finally:
        ray.shutdown()  # shuts down Serve too


if __name__ == "__main__":
    typer.run(main)
