"""Actors in place of engines and verifiers, for a node behind a link. They start fast, since they need no torch."""

from __future__ import annotations

import asyncio
import os
import time
from dataclasses import replace

import numpy as np
import ray

from actors.messages import GroupSummary, SampleRequest, VerifierResult, WeightsPublication
from pipelines.simulation.simulator import stand_in_result
from rlad.contracts import Columns, FinishReason, RolloutGroup, WeightsManifest

RESPONSE_TOKENS = 20_000
"""480 KiB for a group of two: above the 100 KiB up to which Ray sends an object with the answer of its call."""

# Time that a worker takes for a group, so that groups are in flight whenever a fault begins.
_SAMPLE_S, _JUDGE_S = 0.2, 0.05


class FarWorker:
    """Rollout worker that fills arrays, with the methods of `RolloutWorker`."""

    def __init__(self, *_: object) -> None:
        self._version = 0

    async def start(self) -> int:
        return os.getpid()

    @ray.method(num_returns=2)
    async def sample(self, request: SampleRequest) -> tuple[GroupSummary, Columns]:
        version = self._version
        await asyncio.sleep(_SAMPLE_S)
        return filled_group(request, version, RESPONSE_TOKENS)

    async def update_weights(self, publication: WeightsPublication) -> WeightsManifest:
        self._version = publication.manifest.version
        return publication.manifest

    async def version(self) -> int:
        return self._version

    async def close(self) -> None:
        pass


class FarVerifier:
    """Verifier that reads the columns of a group and gives verdicts."""

    def verify(self, columns: Columns, with_texts: bool) -> VerifierResult:
        group = RolloutGroup.from_columns(columns)
        time.sleep(_JUDGE_S)
        result = stand_in_result(group.num_responses, elapsed_s=_JUDGE_S)
        return replace(result, verdicts=replace(result.verdicts, uid=group.uid, attempt=group.attempt))


def filled_group(request: SampleRequest, version: int, response_tokens: int) -> tuple[GroupSummary, Columns]:
    """Return a group whose responses are equal, with its summary.

    Args:
        request: The request.
        version: Policy version of all tokens.
        response_tokens: Number of tokens of each response.
    """
    offsets = np.arange(request.num_responses + 1, dtype=np.int64) * response_tokens
    tokens = int(offsets[-1])
    group = RolloutGroup(
        uid=request.uid,
        attempt=request.attempt,
        prompt_id=request.prompt_id,
        task=request.task,
        answer=request.answer,
        temperature=1.0,
        prompt_ids=request.prompt_ids,
        response_ids=np.ones(tokens, np.int32),
        response_offsets=offsets,
        behaviour_logprobs=np.full(tokens, -1.0, np.float32),
        policy_versions=np.full(tokens, version, np.int32),
        finish_reasons=np.full(request.num_responses, FinishReason.STOP, np.uint8),
    )
    return GroupSummary.of(group), group.to_columns()
