"""The step loop in virtual time: a used-up budget ends the run between two steps, and a larger one continues it."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from actors.experience.batch_shards import EndRequest
from actors.experience.broker import ExperienceBroker
from pipelines.cluster.resources import demand_by_pool
from pipelines.monitoring.cost_meter import CostMeter
from pipelines.run.cost import read_cost
from pipelines.run.directory import RunDirectory, read_json_lines
from pipelines.run.telemetry import Telemetry
from pipelines.simulation.harness import stand_in_prompts
from pipelines.simulation.simulator import (
    SimulatedRollout,
    SimulatedTeacher,
    SimulatedVerifiers,
    stand_in_shard_policy,
)
from pipelines.simulation.stand_ins import InProcess, StandInLearner
from pipelines.simulation.workload import Lengths, Speeds
from pipelines.training.broker_client import BrokerClient
from pipelines.training.deadlines import run_unless_failed
from pipelines.training.group_pipeline import GroupPipeline, GroupServices, GroupSettings
from pipelines.training.shutdown import EarlyEnd
from pipelines.training.step_loop import run_step_loop
from pipelines.training.step_pipeline import PromptScheduler, TrainingSet
from rlad.config import RunConfig, load_run_config
from rlad.errors import StopRequestedError
from rlad.testing.virtual_time import run_in_virtual_time

SMOKE = Path(__file__).parents[4] / "configs" / "smoke_gpu.yaml"
STEPS = 6
# All responses have 100 tokens of 36 s each: a step takes an hour, and everything else next to nothing.
LENGTHS = Lengths(median=100, p99_over_median=1.0, longest=100, group_size=4)
SPEEDS = Speeds(token_s=36.0, slots=64, teacher_token_s=0, verdict_s=0, learner_token_s=0, update_s=0, weights_s=0)


class EndingLearner(StandInLearner):
    """Ends on request with a checkpoint of the trained steps, as the learner's ranks do."""

    checkpoint: int | None = None

    async def _call(self, method: str, *arguments: Any) -> Any:
        answer = await super()._call(method, *arguments)
        if isinstance(answer, EndRequest):
            self.checkpoint = arguments[0]
            raise StopRequestedError(f"{answer.reason} after {self.checkpoint} steps")
        return answer

    async def run(self, steps: int, first: int = 0) -> None:
        await super().run(steps, first)
        await self._broker.report_exported.remote()


class Pool(SimpleNamespace):
    """Pool without statistics, whose size does not change."""

    def stats(self) -> Any:
        return self.statistics

    def state(self) -> Any:
        return SimpleNamespace(target=1, ready=1, starting=0, draining=0)


async def nothing(*_: Any, **__: Any) -> None: ...


async def train(config: RunConfig, run: RunDirectory, *, first: int, warnings: list[str]) -> tuple[int, str] | None:
    """Train from a version. Return version of the checkpoint and reason of an early end; None after the last step."""
    handle = InProcess(ExperienceBroker(str(run.ledger), stand_in_shard_policy(config), LENGTHS.group_size))
    client, learner = BrokerClient(handle=handle), EndingLearner(handle, LENGTHS, SPEEDS)
    prompts = stand_in_prompts(64)
    training_set = TrainingSet(
        fingerprint="stand-in",
        prompt_ids=[record.id for record in prompts.records],
        group_size=LENGTHS.group_size,
        mixture=prompts.mixture,
    )
    cost = CostMeter(config, run, on_warning=warnings.append)

    async def work() -> None:
        started = await client.wait_started(deadline_s=1e9)
        scheduler = PromptScheduler(training_set, seed=0, used=await client.reopen(started.version))
        rollout = SimulatedRollout(config, LENGTHS, SPEEDS, 1, None)
        rollout.stats, rollout.state = (lambda: []), Pool().state  # type: ignore[attr-defined]
        verifiers = SimulatedVerifiers(SPEEDS, 2, LENGTHS.group_size)
        teacher = SimulatedTeacher(SPEEDS, 1)
        source = GroupPipeline(
            GroupSettings.of(config),
            prompts,
            {record.id: {"teacher": 1.0} for record in prompts.records},
            scheduler=scheduler,
            broker=client,
            services=GroupServices(sampler=rollout, verifier=verifiers, teachers={"teacher": teacher}, reference=None),
        )
        services: Any = SimpleNamespace(
            broker=client,
            pools=SimpleNamespace(
                rollout=rollout,
                verifiers=Pool(statistics=SimpleNamespace(busy_s=0.0, processes=2)),
                own_teachers={},
                scalable={},
            ),
            control=SimpleNamespace(is_stopping=False, record_step=lambda *_: None, pool_sizes=lambda: {"rollout": 1}),
            telemetry=Telemetry(run, start_step=started.version, figure_logs=[]),
            started=started,
            samples=None,
            trackers=SimpleNamespace(counts={}),
            metrics=SimpleNamespace(record_losses=lambda *_, **__: None),
            cost=cost,
        )
        progress: Any = SimpleNamespace(step=lambda *_: None, phase=lambda _: nullcontext())
        await run_step_loop(
            SimpleNamespace(config=config),  # type: ignore[arg-type]
            services,
            training_set,
            scheduler=scheduler,
            source=source,
            evaluation=SimpleNamespace(evaluate_if_due=nothing, accuracy=None),  # type: ignore[arg-type]
            progress=progress,
            early_end=EarlyEnd(client, grace_period_s=60),
        )

    async with cost.running():
        with cost.reserving(demand_by_pool(config)):
            try:
                await run_unless_failed(work(), watched=learner.run(STEPS, first))
            except StopRequestedError as stop:
                assert learner.checkpoint is not None
                return learner.checkpoint, str(stop)
    return None


def config_of(gpu_hours: float) -> RunConfig:
    return load_run_config(
        SMOKE,
        [
            f"training.steps={STEPS}",
            "rollout.gpus_per_worker=1",
            "learner.gpus_per_rank=2",
            "teacher.gpus_per_replica=1",
            "training.max_staleness=0",
            f"cost.budget.gpu_hours={gpu_hours}",
        ],
    )


def test_the_run_ends_after_the_step_that_used_up_the_budget_and_continues_with_a_larger_one(tmp_path: Path) -> None:
    """4 GPUs and steps of an hour: 9 GPU-hours end in the third step, 80% of them, 7.2, in the second."""
    run, warnings = RunDirectory(tmp_path), list[str]()
    early_end = run_in_virtual_time(train(config_of(9), run, first=0, warnings=warnings))
    assert early_end is not None
    assert early_end[0] == 3
    assert early_end[1].startswith("the budget is used up (cost.budget.gpu_hours 12.0")
    assert early_end[1].endswith("of 9.00; increase it to continue) after 3 steps")
    ended = read_cost(run)
    assert ended is not None
    assert ended.total.gpu_hours == pytest.approx(12, abs=0.1)
    assert len(warnings) == 1
    figures = {line["step"]: line for line in read_json_lines(run.metrics)}
    assert [line["cost/gpu_hours"] for line in figures.values()] == pytest.approx([4, 8, 12], abs=0.1)

    assert run_in_virtual_time(train(config_of(100), run, first=3, warnings=warnings)) is None
    finished = read_cost(run)
    assert finished is not None
    assert finished.attempts == 2
    assert finished.total.gpu_hours == pytest.approx(24, abs=0.1)
    assert [line["step"] for line in read_json_lines(run.metrics)] == [1, 2, 3, 4, 5, 6]
