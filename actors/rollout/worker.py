"""A rollout worker: a vLLM engine that samples groups of responses from the student."""

from __future__ import annotations

import asyncio
import logging
import os
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import ray
import xxhash

from actors.engines.vllm_engine.settings import VllmSettings, apply_environment
from actors.messages import GroupSummary, SampleRequest, WeightsPublication
from actors.weights.node_file import NodeWeights, require_shared_memory
from actors.weights.published_file import hold_published
from rlad.contracts import Columns, GenerationProgress, RolloutGroup, WeightsManifest
from rlad.errors import WeightsMismatchError
from rlad.models.locations import fetch_model
from rlad.weight_file import weight_bytes

if TYPE_CHECKING:
    from actors.engines.vllm_engine.sampler import VllmSampler

logger = logging.getLogger(__name__)


class RolloutWorker:
    """A Ray actor around one engine."""

    def __init__(self, settings: VllmSettings, run_id: str) -> None:
        self._settings = settings
        self._run_id = run_id
        self._weights: NodeWeights
        self._sampler: VllmSampler
        # Checksum of the file that the engine loaded last.
        self._loaded = ""

    async def start(self) -> int:
        """Start the engine.

        This is not done in the constructor, because a method returns its error as it is, and Ray wraps a constructor's.

        Returns:
            Process id of the worker.

        Raises:
            EngineError: The engine does not start, or the node has too little shared memory for weight updates.
        """
        directory = await asyncio.to_thread(fetch_model, self._settings.model_path)
        self._settings = replace(self._settings, model_path=str(directory))
        if self._settings.weight_transport == "object_store":
            require_shared_memory(weight_bytes(directory, self._settings.dtype), self._run_id)
        apply_environment(self._settings)
        from actors.engines.vllm_engine.sampler import VllmSampler

        self._weights = NodeWeights(self._run_id)
        self._sampler = VllmSampler(self._settings)
        await self._sampler.start()
        return os.getpid()

    @ray.method(num_returns=2)
    async def sample(self, request: SampleRequest) -> tuple[GroupSummary, Columns]:
        """Sample one group. The summary and the columns become two objects, both owned by the caller."""
        responses = await self._sampler.sample(
            request.prompt_ids,
            request_id=f"{request.uid}#{request.attempt}",
            num_responses=request.num_responses,
            max_response_tokens=request.max_response_tokens,
            temperature=request.temperature,
            top_p=request.top_p,
            # vLLM seeds response i with seed + i. Hashing the uid spreads the seeds, so that no two groups share a
            # stream.
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
        return GroupSummary.of(group), group.to_columns()

    async def join_transfer(self, init_info: dict[str, Any]) -> None:
        """Join the process group in which the learner sends weights. Called on all receiving workers at once.

        Raises:
            EngineError: Another member did not join.
        """
        await self._sampler.join_transfer(init_info)

    async def receive_weights(self, update_info: dict[str, Any], manifest: WeightsManifest) -> WeightsManifest:
        """Receive the weights that the learner sends to all joined workers. Called on all of them at once.

        Returns:
            Manifest of the weights that the engine has loaded.

        Raises:
            WeightsMismatchError: The weights do not fit the model or are incomplete. The engine cannot serve any more.
        """
        return await self._sampler.update_weights({**update_info, "version": manifest.version}, manifest)

    async def update_weights(self, publication: WeightsPublication) -> WeightsManifest:
        """Load published weights.

        Returns:
            Manifest of the weights that the engine has loaded.

        Raises:
            WeightsMismatchError: The weights differ from the publication or do not fit the model.
            WeightsLostError: The published objects no longer exist.
        """
        manifest = publication.manifest
        try:
            await self._load(publication)
        except WeightsMismatchError as error:
            # The file that the deltas were applied to may have been wrong. A full version takes its place once.
            if not publication.deltas or await self._sampler.version() is None:
                raise
            logger.warning("weights=written_again policy_version=%d reason=%s", manifest.version, error)
            await self._load(publication)
        self._loaded = manifest.checksum
        await asyncio.to_thread(self._weights.remove_older, manifest)
        return manifest

    async def _load(self, publication: WeightsPublication) -> None:
        """Write the node's file, unless another worker has, and load it. A file that is refused is removed."""
        manifest = publication.manifest
        held = await asyncio.to_thread(hold_published, self._weights, publication)
        try:
            file = {
                "path": str(held.path),
                "version": manifest.version,
                "checksum": manifest.checksum,
                "num_bytes": manifest.num_bytes,
                "base": self._loaded,
                "changed": publication.changed_since(self._loaded),
            }
            await self._sampler.update_weights(file, manifest)
        except WeightsMismatchError:
            held.remove()
            raise
        finally:
            held.release()

    async def version(self) -> int | None:
        """Return the policy version that the engine process holds. An answer also shows that the process is alive."""
        return await self._sampler.version()

    async def progress(self) -> GenerationProgress:
        """Return what the engine has generated since it started."""
        return self._sampler.progress()

    async def close(self) -> None:
        """Shut down the engine and remove the worker's files from the node."""
        await self._sampler.close()
        self._weights.close()
