"""Driver side of a learner's run, for the tests of this folder: Ray, configuration, groups in, weights out."""

from __future__ import annotations

import asyncio
import os
import sqlite3
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray
import torch
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

from .learner_reference import OBJECTIVE

STEPS, PROMPTS, UPDATES = 4, 4, 2
# Time without progress after which a wait fails. Each wait is for a single event, at most one step of the learner.
# On an idle machine a step takes seconds, and a restart of the ranks 30 s.
STALL_TIMEOUT_S = 400


def ray_folder(pid: int) -> str:
    return f"/tmp/ray_learner_{pid}"  # short, because the paths of sockets in it have a maximum length


def start_ray() -> None:
    ray.init("local", num_cpus=4, include_dashboard=False, log_to_driver=False, _temp_dir=ray_folder(os.getpid()))


def run_config(model_path: Path | str, *, steps: int = STEPS, passes: int = 1, **learner: Any) -> RunConfig:
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
            "training": {"steps": steps, "prompts_per_step": PROMPTS, "updates_per_step": UPDATES, "passes": passes},
            "evaluation": {"prompts": {**knights, "split": "evaluation"}},
            "checkpoints": {"every_steps": 2, "keep": 1},
        }
    )


class Run:
    """Driver side of a run: opens steps, passes scored groups to the broker and waits for the learner."""

    def __init__(self, config: RunConfig, run_dir: Path, groups: dict[str, ScoredGroup]) -> None:
        self.config, self.groups = config, groups
        policy = ShardPolicy(
            ranks=config.learner.sequence_groups,
            token_budget=config.learner.micro_batch_tokens,
            skip_equal_rewards=True,
            skip_truncated=False,
            passes=config.training.passes,
        )
        self.broker = ray.remote(ExperienceBroker).options(num_cpus=0).remote(str(run_dir / "ledger.sqlite"), policy, 3)
        settings = LearnerSettings.of(config, student=config.student.path, run_dir=run_dir, broker=self.broker)
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


def learner_state(run_dir: Path, step: int) -> list[Any]:
    """Return weights, optimizer state and counters of the checkpoint after a number of steps, of two ranks."""
    files = sorted((run_dir / "checkpoints" / f"step-{step:06d}").rglob("*.pt"))
    assert len(files) == 3  # weights, and the optimizer state of two ranks
    return [leaf for file in files for leaf in _leaves(torch.load(file, weights_only=False))]


def require_equal(found: list[Any], expected: list[Any]) -> None:
    """Compare two states bit for bit."""
    for one, other in zip(found, expected, strict=True):
        if isinstance(other, Tensor):
            assert torch.equal(one, other)
        elif isinstance(other, str | int | float | bool | None):
            assert one == other


def _leaves(state: Any) -> list[Any]:
    """Return the tensors and values of a nested state, in order."""
    if isinstance(state, dict):
        return [leaf for key in sorted(state, key=str) for leaf in (str(key), *_leaves(state[key]))]
    if isinstance(state, list | tuple):
        return [leaf for each in state for leaf in _leaves(each)]
    return [state]


def trained_groups(run_dir: Path) -> list[tuple[str, int]]:
    """Return the uid and step of each group, in the order of training."""
    connection = sqlite3.connect(run_dir / "ledger.sqlite")
    found = connection.execute("SELECT uid, step FROM trained ORDER BY rowid").fetchall()
    connection.close()
    return found
