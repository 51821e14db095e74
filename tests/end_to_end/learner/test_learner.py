"""Learner under real Ray Train and DeepSpeed, with a real broker. Ranks and drivers are killed."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
import torch
from ray.train import Result
from safetensors.torch import load
from torch import Tensor
from transformers import AutoModelForCausalLM

from actors.experience.batch_shards import ShardPolicy
from actors.experience.broker import ExperienceBroker, StepReport
from actors.experience.group import ExperienceGroup, WeightedScores
from actors.learner.group import LearnerGroup
from actors.learner.settings import LearnerSettings
from actors.messages import GroupSummary
from rlad.config import RunConfig
from rlad.contracts import ScoredGroup
from rlad.errors import ContractError, RunStoppedError

from .learner_reference import OBJECTIVE, ReferenceTrainer, make_groups, relative_error, sequences_of

pytestmark = [pytest.mark.engine, pytest.mark.timeout(1800)]

MakeModel = Callable[..., Path]

STEPS, PROMPTS, UPDATES = 4, 4, 2
# Time without progress after which a wait fails. Each wait is for a single event, at most one step of the learner.
# On an idle machine a step takes seconds, and a restart of the ranks 30 s.
STALL_TIMEOUT_S = 400


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    start_ray()
    yield
    ray.shutdown()
    shutil.rmtree(ray_folder(os.getpid()), ignore_errors=True)


def ray_folder(pid: int) -> str:
    return f"/tmp/ray_learner_{pid}"  # short, because the paths of sockets in it have a maximum length


def start_ray() -> None:
    ray.init("local", num_cpus=4, include_dashboard=False, log_to_driver=False, _temp_dir=ray_folder(os.getpid()))


def run_config(model_path: Path | str, *, passes: int = 1, **learner: Any) -> RunConfig:
    knights = {"source": "knights_knaves", "people": {2: 1.0}, "count": 4}
    return RunConfig.model_validate(
        {
            "name": "learner-test",
            "student": {"path": str(model_path), "dtype": "float32"},
            "teacher": {"path": str(model_path)},
            "objective": OBJECTIVE,
            "prompts": {**knights, "split": "train"},
            "verifiers": {"knights_knaves": {"name": "knights_knaves"}},
            "rollout": {"group_size": 3},
            "learner": {
                "ranks": 2,
                "micro_batch_tokens": 12,
                "cpus_per_rank": 0.5,
                "optimizer": {"lr": 1e-3, "eps": 1e-3},
                **learner,
            },
            "training": {"steps": STEPS, "prompts_per_step": PROMPTS, "updates_per_step": UPDATES, "passes": passes},
            "evaluation": {"prompts": {**knights, "split": "evaluation"}},
            "checkpoints": {"every_steps": 2, "keep": 1},
        }
    )


class Run:
    """Driver side of a run: opens steps, passes scored groups to the broker and waits for the learner."""

    def __init__(self, config: RunConfig, run_dir: Path, groups: dict[str, ScoredGroup]) -> None:
        self.config, self.groups = config, groups
        policy = ShardPolicy(
            ranks=config.learner.ranks,
            token_budget=config.learner.micro_batch_tokens,
            skip_equal_rewards=True,
            skip_truncated=False,
            passes=config.training.passes,
        )
        self.broker = ray.remote(ExperienceBroker).options(num_cpus=0).remote(str(run_dir / "ledger.sqlite"), policy, 3)
        settings = LearnerSettings.of(config, student=Path(config.student.path), run_dir=run_dir, broker=self.broker)
        self.learner = LearnerGroup(settings, run_id="learner-test")
        self.learner.start()
        self._attempts: dict[str, int] = {}

    async def start(self) -> StepReport:
        started = await self.poll("wait_started")
        await self.broker.reopen.remote(started.version)
        return started

    def updates(self, step: int) -> list[list[str]]:
        uids = list(self.groups)[step * PROMPTS : (step + 1) * PROMPTS]
        return [uids[: PROMPTS // UPDATES], uids[PROMPTS // UPDATES :]]

    async def open(self, step: int) -> list[str]:
        updates = self.updates(step)
        self._attempts |= await self.broker.open_step.remote(
            step, [[(uid, uid) for uid in update] for update in updates]
        )
        return [uid for update in updates for uid in update]

    async def add(self, step: int, uid: str, *, scores_of: str | None = None, responses: int = 3) -> None:
        scored, attempt = self.groups[uid], self._attempts[uid]
        await self.broker.record_sampled.remote(uid, attempt)
        scores = self.groups[scores_of or uid].teacher_scores
        group_ref, scores_ref = (
            ray.put({**record.to_columns(), "attempt": attempt}) for record in (scored.group, scores)
        )
        verdicts = replace(scored.verdicts, attempt=attempt)
        whole = GroupSummary.of(scored.group)
        group = ExperienceGroup(
            summary=replace(whole, attempt=attempt, response_lengths=whole.response_lengths[:responses]),
            columns=group_ref,
            verdicts=verdicts,
            rewards=tuple(scored.rewards.tolist()),
            teacher_scores=(WeightedScores(weight=1.0, scores=scores_ref),),
        )
        await self.broker.add.remote(step, group)

    async def train(self, step: int) -> StepReport:
        for uid in await self.open(step):
            await self.add(step, uid)
        return await self.poll("wait_finished", step)

    async def train_half(self, step: int) -> list[str]:
        """Add the step's first group and wait until the ranks have claimed it. Return the uids of the other groups."""
        first, *missing = await self.open(step)
        await self.add(step, first)
        await self.until(self._nothing_unclaimed)
        return missing

    async def finish(self, step: int, missing: list[str]) -> StepReport:
        for uid in missing:
            await self.add(step, uid)
        return await self.poll("wait_finished", step)

    async def end(self) -> None:
        await self.broker.dismiss.remote()
        await asyncio.wait_for(self.learner.wait(), STALL_TIMEOUT_S)
        await self.learner.close()

    async def poll(self, method: str, *arguments: Any) -> Any:
        async def ask() -> Any:
            failure = self.learner.failure()
            if failure is not None:
                raise failure
            return await getattr(self.broker, method).remote(*arguments)

        return await self.until(ask)

    async def until(self, ask: Callable[[], Awaitable[Any]]) -> Any:
        async with asyncio.timeout(STALL_TIMEOUT_S):
            while not (answer := await ask()):
                await asyncio.sleep(0.05)
            return answer

    async def _nothing_unclaimed(self) -> bool:
        return (await self.broker.counts.remote())["scored"] == 0


@pytest.fixture(scope="module")
def model_path(make_model: MakeModel) -> Path:
    return make_model(tied=True)


@pytest.fixture(scope="module")
def groups(model_path: Path) -> dict[str, ScoredGroup]:
    return make_groups(model_path, count=STEPS * PROMPTS)


def published(report: StepReport) -> dict[str, Tensor]:
    publication = report.publications[0]
    assert publication.manifest.version == report.version
    parts = [part for bucket in publication.buckets for part in ray.get(bucket.ref, timeout=STALL_TIMEOUT_S)]
    return load(b"".join(part.tobytes() for part in parts))


def exported(run_dir: Path) -> dict[str, Tensor]:
    return {
        name: tensor.detach()
        for name, tensor in AutoModelForCausalLM.from_pretrained(run_dir / "export").named_parameters()
    }


def start_weights(model_path: Path) -> dict[str, Tensor]:
    return {
        name: tensor.detach() for name, tensor in AutoModelForCausalLM.from_pretrained(model_path).named_parameters()
    }


def checkpoints(run_dir: Path) -> list[str]:
    return sorted(path.name for path in (run_dir / "checkpoints").iterdir() if path.is_dir())


@pytest.fixture(scope="module")
def reference(model_path: Path, groups: dict[str, ScoredGroup]) -> list[dict[str, Tensor]]:
    """Weights of versions 0 to STEPS, computed with plain PyTorch."""
    config = run_config(model_path)
    trainer = ReferenceTrainer(model_path, config.learner.optimizer)
    uids, size = list(groups), PROMPTS // UPDATES
    versions = [trainer.weights()]
    for step in range(STEPS):
        for update in range(UPDATES):
            first = step * PROMPTS + update * size
            trainer.update(groups, sequences_of({uid: groups[uid] for uid in uids[first : first + size]}))
        versions.append(trainer.weights())
    return versions


async def test_published_versions_match_plain_pytorch(
    model_path: Path, groups: dict[str, ScoredGroup], reference: list[dict[str, Tensor]], tmp_path: Path
) -> None:
    run = Run(run_config(model_path, zero_stage=3), tmp_path, groups)
    reports = [await run.start()]
    start = start_weights(model_path)
    assert all(torch.equal(tensor, start[name]) for name, tensor in published(reports[0]).items())
    for step in range(STEPS):
        reports.append(await run.train(step))
        weights = published(reports[-1])
        assert relative_error(weights, reference[step + 1], start) <= 2e-5
    await run.end()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in exported(tmp_path).items())

    assert [report.version for report in reports] == [0, 1, 2, 3, 4]
    last = reports[-1].metrics
    assert last["learner/updates"] == UPDATES
    assert last["learner/tokens"] == sum(
        groups[uid].group.num_tokens for update in run.updates(STEPS - 1) for uid in update
    )
    assert all(last[f"learner/{name}_s"] > 0 for name in ("wait", "train", "publish"))
    # The time of a checkpoint is reported with the next step.
    assert [report.metrics["learner/checkpoint_s"] > 0 for report in reports[1:]] == [False, False, True, False]
    assert checkpoints(tmp_path) == ["step-000004"]  # keep: 1
    counts = await run.broker.counts.remote()
    assert (counts["committed"], counts["lost"], counts["duplicated"]) == (STEPS * PROMPTS, 0, 0)


async def test_killing_a_rank_in_mid_step_does_not_change_the_weights(
    model_path: Path, groups: dict[str, ScoredGroup], reference: list[dict[str, Tensor]], tmp_path: Path
) -> None:
    run = Run(run_config(model_path), tmp_path, groups)
    await run.start()
    for step in range(3):
        await run.train(step)
    missing = await run.train_half(3)
    ranks = [
        process
        for process in psutil.Process().children(recursive=True)
        if "RayTrainWorker" in " ".join(process.cmdline())
    ]
    assert len(ranks) == 2
    os.kill(ranks[0].pid, signal.SIGKILL)

    report = await run.finish(3, missing)  # restarts from the checkpoint after step 1, so step 2 is trained again
    assert relative_error(published(report), reference[4], start_weights(model_path)) <= 2e-5
    assert (await run.poll("wait_started")).version == 2
    await run.end()
    assert all(not rank.is_running() for rank in ranks)
    counts = await run.broker.counts.remote()
    assert (counts["committed"], counts["lost"], counts["duplicated"]) == (STEPS * PROMPTS, 0, 0)
    assert checkpoints(tmp_path) == ["step-000004"]


async def test_passes_train_on_the_batch_again_with_the_behaviour_of_sampling_also_after_a_killed_rank(
    model_path: Path, groups: dict[str, ScoredGroup], tmp_path: Path
) -> None:
    """Two passes of two updates a step. A rank is killed while a later step lacks groups."""
    config = run_config(model_path, passes=2)
    trainer, uids, size = ReferenceTrainer(model_path, config.learner.optimizer), list(groups), PROMPTS // UPDATES
    expected = [trainer.weights()]
    for step in range(STEPS):
        for _ in range(2):
            for first in (step * PROMPTS, step * PROMPTS + size):
                trainer.update(groups, sequences_of({uid: groups[uid] for uid in uids[first : first + size]}))
        expected.append(trainer.weights())
    run, start = Run(config, tmp_path, groups), start_weights(model_path)
    await run.start()
    for step in range(3):
        report = await run.train(step)
        assert relative_error(published(report), expected[step + 1], start) <= 2e-5
    assert report.metrics["learner/updates"] == 2 * UPDATES
    passes = [report.metrics[f"objective/log_ratio_behaviour_abs_mean_pass_{number}"] for number in (1, 2)]
    assert passes[0] != passes[1]
    missing = await run.train_half(3)
    rank = next(
        process
        for process in psutil.Process().children(recursive=True)
        if "RayTrainWorker" in " ".join(process.cmdline())
    )
    os.kill(rank.pid, signal.SIGKILL)
    report = await run.finish(3, missing)
    assert relative_error(published(report), expected[4], start) <= 2e-5
    await run.end()
    counts = await run.broker.counts.remote()
    assert (counts["committed"], counts["trained_steps"], counts["lost"], counts["duplicated"]) == (
        STEPS * PROMPTS,
        STEPS,
        0,
        0,
    )


async def test_new_driver_continues_from_the_checkpoint_of_a_killed_one(
    model_path: Path, groups: dict[str, ScoredGroup], reference: list[dict[str, Tensor]], tmp_path: Path
) -> None:
    # Reading the output blocks the event loop, which is idle at this point.
    command = [
        sys.executable,
        "-c",
        f"from {__name__} import run_until_killed; run_until_killed({str(model_path)!r}, {str(tmp_path)!r})",
    ]
    driver = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)  # noqa: ASYNC220
    assert driver.stdout is not None
    for line in driver.stdout:
        if line == "in step 2\n":
            break
    else:
        pytest.fail(f"the first driver exited with {driver.wait()} before step 2")
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    shutil.rmtree(ray_folder(driver.pid), ignore_errors=True)
    half_written = tmp_path / "checkpoints" / ".partial-step-000004"
    half_written.mkdir()

    run = Run(run_config(model_path, ranks=1), tmp_path, groups)
    assert Result.from_path(tmp_path / "checkpoints").metrics == {"step": 2}
    started = await run.start()
    assert started.version == 2
    assert relative_error(published(started), reference[2], start_weights(model_path)) <= 2e-5
    for step in (2, 3):
        report = await run.train(step)
    assert await run.poll("wait_exported")
    assert relative_error(published(report), reference[4], start_weights(model_path)) <= 2e-5, (
        "the weights must stay available after the export"
    )
    await run.end()
    counts = await run.broker.counts.remote()
    assert (counts["committed"], counts["lost"], counts["duplicated"], counts["retried"]) == (
        STEPS * PROMPTS,
        0,
        0,
        PROMPTS,
    )
    assert checkpoints(tmp_path) == ["step-000004"]


def run_until_killed(model_path: str, run_dir: str) -> None:
    """Train two steps, begin a third, print a line and wait to be killed. Runs in a separate process."""
    start_ray()

    async def drive() -> None:
        run = Run(run_config(model_path, ranks=1), Path(run_dir), make_groups(model_path, count=STEPS * PROMPTS))
        await run.start()
        for step in (0, 1):
            await run.train(step)
        await run.train_half(2)
        print("in step 2", flush=True)
        await asyncio.sleep(STALL_TIMEOUT_S)

    asyncio.run(drive())


async def test_error_of_one_rank_ends_all_ranks_without_a_restart(
    model_path: Path, groups: dict[str, ScoredGroup], tmp_path: Path
) -> None:
    run = Run(run_config(model_path), tmp_path, groups)
    await run.start()
    first, second, *_ = await run.open(0)
    # Its single response goes to one rank, with the scores of another group.
    await run.add(0, first, scores_of=second, responses=1)
    await run.add(0, second)
    with pytest.raises(ContractError, match="TeacherScores belongs to g1 attempt 0, but the group is g0 attempt 0"):
        await run.end()
    await run.learner.close()


async def test_stopping_a_run_ends_ranks_that_wait_for_a_batch(
    model_path: Path, groups: dict[str, ScoredGroup], tmp_path: Path
) -> None:
    run = Run(run_config(model_path), tmp_path, groups)
    await run.start()
    await run.train_half(0)
    await run.broker.stop.remote("enough")
    await run.learner.close()
    assert isinstance(run.learner.failure(), RunStoppedError)
    with pytest.raises(RunStoppedError, match="enough"):
        await run.learner.wait()
