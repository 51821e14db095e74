"""The measurement of latency keeps the number of requests at once, and times each response alone."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import numpy as np

from actors.messages import GroupSummary, SampledGroup, SampleRequest
from actors.rollout.pool import RolloutPool
from pipelines.latency import measure_latency
from pipelines.resolution.prompts import EncodedPrompts
from rlad.config import EvaluationConfig, LatencyConfig, RolloutConfig
from rlad.data.records import PromptRecord
from rlad.errors import WorkerLostError
from rlad.evaluation.latency import Latency
from rlad.testing import run_in_virtual_time

SET = EvaluationConfig.model_validate({"prompts": {"source": "file", "path": "prompts.jsonl"}, "temperature": 0.3})
RESPONSE_S = 2.0


class SlowRollout:
    """Each response takes the same time; the first request loses its worker once, after twice that time."""

    def __init__(self, *, loses_a_worker: bool = False) -> None:
        self.requests: list[SampleRequest] = []
        self.at_once = self.most_at_once = 0
        self._loses_a_worker = loses_a_worker

    async def sample(self, request: SampleRequest) -> SampledGroup:
        self.requests.append(request)
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            if self._loses_a_worker:
                self._loses_a_worker = False
                await asyncio.sleep(2 * RESPONSE_S)
                raise WorkerLostError("rollout worker 0 was lost")
            await asyncio.sleep(RESPONSE_S)
        finally:
            self.at_once -= 1
        tokens = 4 + len(request.prompt_id)
        summary = GroupSummary(
            uid=request.uid,
            attempt=0,
            prompt_tokens=1,
            response_lengths=(tokens,),
            is_truncated=(False,),
            tokens_by_version={0: tokens},
        )
        columns: Any = None
        return SampledGroup(summary=summary, columns=columns, worker="w")


def measured(rollout: SlowRollout, *, requests: int, concurrency: int) -> Latency:
    records = [PromptRecord(id=name, prompt="?", task="kk", answer="T", metadata={}) for name in ("p", "pp")]
    measurement = measure_latency(
        cast(RolloutPool, rollout),
        EncodedPrompts(records=records, token_ids=[np.array([1], np.int32)] * 2),
        SET,
        LatencyConfig(requests=requests, concurrency=concurrency),
        RolloutConfig(workers=2, max_response_tokens=9),
        seed=3,
        label="old",
    )
    return run_in_virtual_time(measurement)


def test_requests_repeat_the_prompts_and_their_number_at_once_is_kept_for_each_worker() -> None:
    rollout = SlowRollout()
    found = measured(rollout, requests=12, concurrency=2)
    assert rollout.most_at_once == 4
    assert [request.prompt_id for request in rollout.requests] == ["p", "pp"] * 6
    assert len({request.uid for request in rollout.requests}) == 12
    assert {(request.num_responses, request.max_response_tokens) for request in rollout.requests} == {(1, 9)}
    assert {(request.temperature, request.seed) for request in rollout.requests} == {(0.3, 3)}
    assert (found.requests, found.concurrency, found.response_tokens) == (12, 2, 5.5)
    assert (found.median_s, found.p95_s) == (RESPONSE_S, RESPONSE_S), "the time in the queue does not count"
    assert found.tokens_per_s == 66 / (3 * RESPONSE_S)  # three rounds of four requests


def test_time_with_a_lost_worker_does_not_count() -> None:
    rollout = SlowRollout(loses_a_worker=True)
    found = measured(rollout, requests=1, concurrency=1)
    assert len(rollout.requests) == 2
    assert found.p95_s == RESPONSE_S
