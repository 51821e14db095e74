"""Dynamic sampling drops groups whose responses are equally correct, at any length."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from actors.experience.batch_shards import ShardPolicy
from actors.experience.broker import ExperienceBroker
from actors.experience.group import ColumnsRef
from actors.messages import GroupSummary, SampledGroup, SampleRequest, VerifierResult
from pipelines.simulation.harness import stand_in_prompts
from pipelines.simulation.stand_ins import InProcess
from pipelines.training.broker_client import BrokerClient
from pipelines.training.group_pipeline import GroupPipeline, GroupServices, GroupSettings
from pipelines.training.step_metrics import GroupRecord
from pipelines.training.step_pipeline import OpenStep, PromptScheduler, TrainingSet
from rlad.config import load_run_config
from rlad.contracts import Outcome, Verdicts

SMOKE = Path(__file__).parents[4] / "configs" / "smoke_cpu.yaml"
# 100 tokens of budget, a penalty of up to 1 over the last 50: lengths of 50, 75 and 100 cost 0, 0.5 and 1.
OVERRIDES = [
    "training.max_refills=1",
    "rollout.max_response_tokens=100",
    "rewards.overlong_buffer_tokens=50",
    "rewards.overlong_penalty=1.0",
]


class Sampler:
    """Samples two responses of the given lengths for every prompt."""

    def __init__(self, lengths: tuple[int, int]) -> None:
        self._lengths = lengths

    async def sample(self, request: SampleRequest, *, priority: int) -> SampledGroup:
        summary = GroupSummary(
            uid=request.uid,
            attempt=request.attempt,
            prompt_tokens=1,
            response_lengths=self._lengths,
            is_truncated=(False, False),
            tokens_by_version={0: sum(self._lengths)},
        )
        return SampledGroup(summary=summary, columns=None, worker="rollout-0")


class Verifier:
    """Gives the two responses of every group the given rewards."""

    def __init__(self, rewards: Sequence[float]) -> None:
        self._rewards = rewards

    async def verify(self, columns: ColumnsRef, *, task: str, num_tokens: int) -> VerifierResult:
        verdicts = Verdicts(
            uid="any",
            attempt=0,
            rewards=np.array(self._rewards, np.float32),
            outcomes=np.full(2, Outcome.CORRECT, np.uint8),
            elapsed_s=np.zeros(2, np.float32),
        )
        return VerifierResult(verdicts=verdicts, elapsed_s=0.0)


class Scorer:
    """Scores nothing and counts its calls."""

    calls = 0

    async def score(
        self, group_ref: ColumnsRef, *, num_tokens: int, support: object = None, prompt_ids: object = None
    ) -> ColumnsRef:
        self.calls += 1
        return None


async def submitted(
    folder: Path, lengths: tuple[int, int], rewards: Sequence[float]
) -> tuple[list[GroupRecord], GroupRecord, tuple[float, ...], int]:
    """Produce one group with at most one refill. Return dropped groups, the last one, its rewards, scoring calls."""
    prompts, scorer = stand_in_prompts(4), Scorer()
    broker = ExperienceBroker(
        str(folder / "ledger.sqlite"),
        ShardPolicy(ranks=1, token_budget=10, skip_equal_rewards=False, skip_truncated=False),
        2,
    )
    scheduler = PromptScheduler(
        TrainingSet(fingerprint="f", prompt_ids=[record.id for record in prompts.records], group_size=2), seed=0
    )
    pipeline = GroupPipeline(
        GroupSettings.of(load_run_config(SMOKE, OVERRIDES)),
        prompts,
        {record.id: {"teacher": 1.0} for record in prompts.records},
        scheduler=scheduler,
        broker=BrokerClient(InProcess(broker)),
        services=GroupServices(
            sampler=Sampler(lengths), verifier=Verifier(rewards), teachers={"teacher": scorer}, reference=None
        ),
    )
    uid, entry = scheduler.take()
    step, attempts = OpenStep(number=0), await broker.open_step(0, [[(uid, "prompt")]])
    record = await pipeline.submit_group(step, uid, attempts[uid], entry)
    shard = await broker.claim(0, 0, 0)
    assert shard is not None
    return step.dropped, record, shard.groups[record.summary.uid].rewards, scorer.calls


@pytest.mark.parametrize(
    ("lengths", "rewards", "shaped", "is_dropped"),
    [
        ((50, 75), (1.0, 1.0), (1.0, 0.5), True),  # both correct: the penalty alone makes a difference
        ((50, 100), (0.0, 0.0), (0.0, -1.0), True),
        ((75, 50), (1.0, 0.5), (0.5, 0.5), False),  # correctness differs, although the penalty evens it out
        ((50, 50), (1.0, 0.0), (1.0, 0.0), False),
        ((75, 75), (1.0, 1.0), (0.5, 0.5), True),
    ],
)
async def test_correctness_decides_before_the_overlong_penalty(
    tmp_path: Path,
    lengths: tuple[int, int],
    rewards: tuple[float, float],
    shaped: tuple[float, float],
    is_dropped: bool,
) -> None:
    """A dropped group is replaced once, since refills are limited to one; the group that stays has shaped rewards."""
    dropped, record, found, scored = await submitted(tmp_path, lengths, rewards)
    assert len(dropped) == int(is_dropped)
    assert not record.is_dropped
    assert found == pytest.approx(shaped)
    assert scored == 1  # a dropped group is not scored
