"""A group is scored by each teacher behind that teacher's prompt, and by the reference behind the student's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from actors.experience.batch_shards import ShardPolicy
from actors.experience.broker import ExperienceBroker
from actors.experience.group import ColumnsRef
from pipelines.simulation.harness import stand_in_prompts
from pipelines.simulation.stand_ins import InProcess
from pipelines.training.broker_client import BrokerClient
from pipelines.training.group_pipeline import GroupPipeline, GroupServices, GroupSettings
from pipelines.training.step_pipeline import OpenStep, PromptScheduler, TrainingSet
from rlad.config import load_run_config

from .test_dynamic_sampling import OVERRIDES, SMOKE, Sampler, Verifier


class Scorer:
    """Scores nothing and keeps the prompts of its calls."""

    def __init__(self) -> None:
        self.prompts: list[Any] = []

    async def score(
        self, group_ref: ColumnsRef, *, num_tokens: int, support: object = None, prompt_ids: object = None
    ) -> ColumnsRef:
        self.prompts.append(prompt_ids)
        return None


async def test_each_teacher_scores_behind_its_own_prompt(tmp_path: Path) -> None:
    prompts, plain, privileged, reference = stand_in_prompts(2), Scorer(), Scorer(), Scorer()
    broker = ExperienceBroker(
        str(tmp_path / "ledger.sqlite"),
        ShardPolicy(ranks=1, token_budget=10, skip_equal_rewards=False, skip_truncated=False),
        2,
    )
    scheduler = PromptScheduler(
        TrainingSet(fingerprint="f", prompt_ids=[record.id for record in prompts.records], group_size=2), seed=0
    )
    own = {record.id: np.array([number, 7], np.int32) for number, record in enumerate(prompts.records)}
    pipeline = GroupPipeline(
        GroupSettings.of(load_run_config(SMOKE, OVERRIDES)),
        prompts,
        {record.id: {"plain": 1.0, "privileged": 1.0} for record in prompts.records},
        scheduler=scheduler,
        broker=BrokerClient(InProcess(broker)),
        services=GroupServices(
            sampler=Sampler((5, 5)),
            verifier=Verifier((1.0, 0.0)),
            teachers={"plain": plain, "privileged": privileged},
            reference=reference,
        ),
        teacher_prompts={"privileged": own},
    )
    uid, entry = scheduler.take()
    step, attempts = OpenStep(number=0), await broker.open_step(0, [[(uid, prompts.records[entry].id)]])
    await pipeline.submit_group(step, uid, attempts[uid], entry)
    assert plain.prompts == [None]
    assert reference.prompts == [None]
    assert privileged.prompts == [own[prompts.records[entry].id]]
