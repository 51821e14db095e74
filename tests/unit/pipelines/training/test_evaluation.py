"""Evaluation requests depend only on the seed and the prompt, so that the same evaluation gives the same responses."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np

from actors.messages import GroupSummary, SampledGroup, SampleRequest, VerifierResult
from pipelines.resolution.prompts import EncodedPrompts
from pipelines.training.evaluation import evaluate_set
from rlad.config import EvaluationConfig, RolloutConfig
from rlad.contracts import Outcome, Verdicts
from rlad.data.records import PromptRecord

PROMPTS = EncodedPrompts(
    records=[PromptRecord(id=f"p{number}", prompt="-", task="any", answer="-") for number in range(3)],
    token_ids=[np.array([1], np.int32)] * 3,
)
SETTINGS = EvaluationConfig.model_validate(
    {
        "prompts": {"source": "knights_knaves", "people": {2: 1.0}, "count": 8, "split": "evaluation"},
        "samples": 1,
    }
)


class RecordingSampler:
    """Rollout pool that records requests, and answers later ones first."""

    def __init__(self) -> None:
        self.requests: list[SampleRequest] = []

    async def sample(self, request: SampleRequest, *, priority: int = 0) -> SampledGroup:
        self.requests.append(request)
        await asyncio.sleep(0.01 / len(self.requests))
        summary = GroupSummary(
            uid=request.uid,
            attempt=0,
            prompt_tokens=1,
            response_lengths=(2,),
            is_truncated=(False,),
            tokens_by_version={0: 2},
        )
        return SampledGroup(summary=summary, columns=request.uid, worker="w")  # type: ignore[arg-type]


class EveryAnswerCorrect:
    """Verifiers that find every response correct."""

    async def verify(self, columns: Any, *, task: str, num_tokens: int, with_texts: bool = False) -> VerifierResult:
        verdicts = Verdicts(
            uid=columns,
            attempt=0,
            rewards=np.ones(1, np.float32),
            outcomes=np.array([Outcome.CORRECT], np.uint8),
            elapsed_s=np.zeros(1, np.float32),
        )
        return VerifierResult(verdicts=verdicts, elapsed_s=0.0)


async def requests_of(seed: int, label: str) -> dict[str, tuple[str, int | None]]:
    sampler: Any = RecordingSampler()
    verifiers: Any = EveryAnswerCorrect()
    summary = await evaluate_set(sampler, verifiers, PROMPTS, SETTINGS, RolloutConfig(), seed=seed, label=label)
    assert summary.overall.mean == 1.0
    return {request.prompt_id: (request.uid, request.seed) for request in sampler.requests}


async def test_the_same_evaluation_sends_the_same_uids_and_seeds() -> None:
    first = await requests_of(7, "aime")
    assert first == await requests_of(7, "aime")
    assert {seed for _, seed in first.values()} == {7}
    assert len({uid for uid, _ in first.values()}) == 3, "each prompt has its own stream of random numbers"
    assert first != await requests_of(8, "aime")
