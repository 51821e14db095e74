"""Measurement of a model's latency by a short run of the rollout workers that have just evaluated it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from itertools import cycle, islice

from actors.messages import SampleRequest
from actors.rollout.pool import RolloutPool
from pipelines.resolution.prompts import EncodedPrompts
from pipelines.training.deadlines import together
from pipelines.training.evaluation import again_if_worker_lost, evaluation_request
from rlad.config import EvaluationConfig, LatencyConfig, RolloutConfig
from rlad.evaluation.latency import Latency, summarise_latency


async def measure_latency(
    rollout: RolloutPool,
    prompts: EncodedPrompts,
    settings: EvaluationConfig,
    latency: LatencyConfig,
    engines: RolloutConfig,
    *,
    seed: int,
    label: str,
    on_response: Callable[[], None] = lambda: None,
) -> Latency:
    """Sample single responses, with a fixed number of requests at once, and measure the time of each.

    The prompts are taken in their order, again from the first one if there are fewer than requests. Engines that have
    just evaluated the set are warm.

    Args:
        rollout: Samples the responses.
        prompts: Prompts of the set.
        settings: Settings of the set.
        latency: Number of requests, and of those at once.
        engines: Settings of the rollout pool.
        seed: Seed of the responses.
        label: Makes the requests' uids unique.
        on_response: Called after each response, for a progress bar.
    """
    in_flight = asyncio.Semaphore(latency.concurrency * engines.workers)

    async def respond(number: int, index: int) -> tuple[float, int]:
        uid = f"latency:{label}:{number}"
        request = evaluation_request(prompts, index, settings, engines, uid=uid, responses=1, seed=seed)
        async with in_flight:
            found = await _timed(rollout, request)
        on_response()
        return found

    places = islice(cycle(range(len(prompts.records))), latency.requests)
    clock = asyncio.get_running_loop().time
    began = clock()
    found = await together(*(respond(number, index) for number, index in enumerate(places)))
    elapsed_s = clock() - began
    seconds, tokens = zip(*found, strict=True)
    return summarise_latency(seconds, tokens, elapsed_s=elapsed_s, concurrency=latency.concurrency)


@again_if_worker_lost
async def _timed(rollout: RolloutPool, request: SampleRequest) -> tuple[float, int]:
    """Return the time of a response, seconds, and its number of tokens. A lost worker costs no time."""
    clock = asyncio.get_running_loop().time
    began = clock()
    sampled = await rollout.sample(request)
    return clock() - began, sampled.summary.num_tokens
