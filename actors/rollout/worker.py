"""A rollout worker: a vLLM engine that samples groups of responses from the student."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import ray
import xxhash
from ray.exceptions import ObjectLostError

from actors.engines.vllm_engine.settings import VllmSettings, apply_environment
from actors.messages import GroupSummary, SampleRequest, WeightsPublication
from actors.weights.node_file import NodeWeights
from rlad.contracts import Columns, FinishReason, RolloutGroup, WeightsManifest
from rlad.errors import EngineError, WeightsMismatchError
from rlad.weight_file import Bytes

if TYPE_CHECKING:
    from actors.engines.vllm_engine.sampler import VllmSampler


class RolloutWorker:
    """A Ray actor around one engine."""

    def __init__(self, settings: VllmSettings, run_id: str) -> None:
        self._settings = settings
        self._run_id = run_id
        self._weights: NodeWeights
        self._sampler: VllmSampler

    async def start(self) -> int:
        """Start the engine. A method, not the constructor, so that what fails comes back as an error of ours.

        Returns:
            The process id of the worker.
        """
        apply_environment(self._settings)
        from actors.engines.vllm_engine.sampler import VllmSampler

        self._weights = NodeWeights(self._run_id)
        self._sampler = VllmSampler(self._settings)
        await self._sampler.start()
        return os.getpid()

    @ray.method(num_returns=2)
    async def sample(self, request: SampleRequest) -> tuple[GroupSummary, Columns]:
        """Sample one group; the two parts become two objects of the caller."""
        started = time.monotonic()
        responses = await self._sampler.sample(
            request.prompt_ids,
            request_id=f"{request.uid}#{request.attempt}",
            num_responses=request.num_responses,
            max_response_tokens=request.max_response_tokens,
            temperature=request.temperature,
            top_p=request.top_p,
            # vLLM seeds response i with seed + i: spread the groups, so that no two of them share a stream.
            seed=None if request.seed is None else xxhash.xxh32_intdigest(request.uid.encode(), seed=request.seed),
        )
        group = RolloutGroup(
            uid=request.uid,
            attempt=request.attempt,
            prompt_id=request.prompt_id,
            task=request.task,
            answer=request.answer,
            temperature=request.temperature or 1.0,
            prompt_ids=request.prompt_ids,
            response_ids=responses.response_ids,
            response_offsets=responses.response_offsets,
            behaviour_logprobs=responses.behaviour_logprobs,
            policy_versions=responses.policy_versions,
            finish_reasons=responses.finish_reasons,
        )
        summary = GroupSummary(
            response_lengths=tuple(group.response_lengths.tolist()),
            is_truncated=tuple((group.finish_reasons == FinishReason.LENGTH).tolist()),
            tokens_by_version=dict(
                zip(
                    *(counted.tolist() for counted in np.unique(group.policy_versions, return_counts=True)), strict=True
                )
            ),
            elapsed_s=time.monotonic() - started,
        )
        return summary, group.to_columns()

    async def join_transfer(self, init_info: dict[str, Any]) -> None:
        """Meet the learner and the workers whom it will send weights; called on all of them at once.

        Raises:
            EngineError: the others did not come.
        """
        await self._sampler.join_transfer(init_info)

    async def receive_weights(self, update_info: dict[str, Any], manifest: WeightsManifest) -> WeightsManifest:
        """Take the weights that the learner sends to all who joined; called on all of them at once.

        Returns:
            What the engine reports to have loaded.

        Raises:
            WeightsMismatchError: they are not this model's, or they did not come whole: the engine serves no more.
        """
        return await self._sampler.update_weights({**update_info, "version": manifest.version}, manifest)

    async def update_weights(self, publication: WeightsPublication) -> WeightsManifest:
        """Load published weights.

        Returns:
            What the engine reports to have loaded.

        Raises:
            WeightsMismatchError: they are not what was published, or not this model's.
            EngineError: they are nowhere any more.
        """
        manifest = publication.manifest
        held = await asyncio.to_thread(
            self._weights.hold,
            manifest,
            [bucket.digest for bucket in publication.buckets],
            partial(_fetch, publication),
        )
        try:
            file = {
                "path": str(held.path),
                "version": manifest.version,
                "checksum": manifest.checksum,
                "num_bytes": manifest.num_bytes,
            }
            reported = await self._sampler.update_weights(file, manifest)
        except WeightsMismatchError:
            held.remove()
            raise
        finally:
            held.release()
        await asyncio.to_thread(self._weights.remove_older, manifest)
        return reported

    async def version(self) -> int | None:
        """Version of the weights, asked of the engine's own process: an answer also says that it lives."""
        return await self._sampler.version()

    async def close(self) -> None:
        """End the engine and leave the node as it was."""
        await self._sampler.close()
        self._weights.close()


def _fetch(publication: WeightsPublication, places: Sequence[int]) -> list[list[Bytes]]:
    """Buckets out of the object store, mapped and not copied.

    Raises:
        EngineError: they are nowhere any more.
    """
    try:
        buckets: list[list[Bytes]] = ray.get([publication.buckets[place].ref for place in places])
    except ObjectLostError as error:
        raise EngineError(
            f"the weights of version {publication.manifest.version} are gone with the process that published them: publish them again"
        ) from error
    return buckets
