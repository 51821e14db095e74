"""Sampling with vLLM: an `AsyncLLM` that gives log-probabilities at the sampling temperature and takes new weights.

Import this module only after `vllm_settings.apply_environment`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from vllm import SamplingParams
from vllm.config.weight_transfer import WeightTransferConfig
from vllm.distributed.weight_transfer.base import WeightTransferInitRequest, WeightTransferUpdateRequest
from vllm.exceptions import VLLMError
from vllm.inputs import tokens_input
from vllm.outputs import CompletionOutput, RequestOutput
from vllm.sampling_params import RequestOutputKind
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.exceptions import EngineDeadError

from actors.engines.vllm_engine.settings import VllmSettings, engine_args
from rlad.contracts import Array, FinishReason, WeightsManifest
from rlad.errors import EngineError, WeightsMismatchError, WorkerLostError

# The module registers our engines with vLLM as `rlad_TRANSPORT`. It belongs into vLLM's processes only.
_EXTENSION = "actors.engines.vllm_engine.weight_loading.WeightsExtension"
_FINISH_REASONS = {"stop": FinishReason.STOP, "length": FinishReason.LENGTH}


@dataclass(frozen=True, slots=True, kw_only=True)
class Responses:
    """The G responses to one prompt, N tokens in all; columns as in `RolloutGroup`."""

    response_ids: Array
    response_offsets: Array
    behaviour_logprobs: Array
    policy_versions: Array
    finish_reasons: Array


class VllmSampler:
    """One engine, which starts with the weights at its model path as version 0. Create and use it in one event loop.

    The engine's model runs in a process of its own; where that dies, every method raises `WorkerLostError`.
    """

    def __init__(self, settings: VllmSettings) -> None:
        """Start the engine; takes about 20 s on CPU.

        Raises:
            EngineError: it does not start.
        """
        arguments = engine_args(
            settings,
            # Log-probabilities after the temperature (and top-p), as the behaviour policy of the ratio must have them.
            logprobs_mode="processed_logprobs",
            enable_prefix_caching=True,
            weight_transfer_config=WeightTransferConfig(backend=f"rlad_{settings.weight_transport}"),
            worker_extension_cls=_EXTENSION,
        )
        try:
            self._engine = AsyncLLM.from_engine_args(arguments)
        except Exception as error:
            raise EngineError(
                f"vLLM does not start on {settings.model_path}: {error} (its log: {Path('/proc/self/fd/2').readlink()})"
            ) from error
        self._version: int | None = None
        self._in_flight = 0
        # Set but for the time of an update.
        self._settled = asyncio.Event()
        self._settled.set()

    async def start(self) -> None:
        """Name the weights that the engine came up with."""
        async with _engine_errors():
            await self._engine.update_weight_version("0")
        self._version = 0

    async def sample(
        self,
        prompt_ids: Array,
        *,
        request_id: str,
        num_responses: int,
        max_response_tokens: int,
        temperature: float,
        top_p: float,
        seed: int | None,
    ) -> Responses:
        """Sample responses to one prompt. Cancelling the call takes the request out of the engine. Waits while weights are being updated.

        Weights that are updated meanwhile sample the rest of the responses, behind what the old ones have: every token tells its version.

        Args:
            prompt_ids: int32 [P].
            request_id: unique among the requests in flight.
            num_responses: G.
            max_response_tokens: budget of a response; one that reaches it is truncated. One that stops by itself ends with its end-of-sequence token.
            temperature: 0 takes the most likely token each time; the log-probabilities are then those at temperature 1.
            top_p: below 1, log-probabilities are those of the distribution cut to that mass.
            seed: decides the samples together with the index of the response, up to rounding in differently composed batches; None takes the engine's stream.

        Raises:
            EngineError: the engine refused the request.
            WeightsMismatchError: the last update failed; this engine does not serve any more.
        """
        await self._settled.wait()
        version = self._version
        if version is None:
            raise WeightsMismatchError("this engine has no weights to sample from: the last update failed half way")
        async with self._flight(), _engine_errors():
            parameters = SamplingParams(
                n=num_responses,
                max_tokens=max_response_tokens,
                temperature=temperature,
                top_p=top_p,
                seed=seed,
                logprobs=0,
                flat_logprobs=True,
                detokenize=False,
                output_kind=RequestOutputKind.FINAL_ONLY,
            )
            # Salted, a prompt's keys and values are found again under the weights that made them and no others.
            prompt = tokens_input(prompt_ids.tolist(), cache_salt=str(version))
            outputs = [output async for output in self._engine.generate(prompt, parameters, request_id)]
        return _columns(outputs[-1])

    async def join_transfer(self, init_info: dict[str, Any]) -> None:
        """Become one of those whom the learner sends weights, in place of whatever group of them the engine was in. Blocks the engine till all are there.

        Args:
            init_info: of vLLM's weight transfer, for this transport.

        Raises:
            EngineError: the others did not come.
        """
        async with _engine_errors():
            try:
                await self._engine.shutdown_weight_transfer_engine()
                await self._engine.init_weight_transfer_engine(WeightTransferInitRequest(init_info=init_info))
            except EngineDeadError:
                raise
            except Exception as error:
                raise EngineError(f"the engine could not join the transfer of weights: {error}") from error

    async def update_weights(self, update_info: dict[str, Any], manifest: WeightsManifest) -> WeightsManifest:
        """Load weights. What is in flight pauses meanwhile and goes on with them; the keys and values of its tokens so far stay those of the old weights.

        Args:
            update_info: of vLLM's weight transfer, for this transport: where the weights are, or what will be sent.
            manifest: what they must be.

        Returns:
            What the engine says it has loaded.

        Raises:
            WeightsMismatchError: they were refused, and the engine goes on with the weights it had; or loading failed half way, and it serves no more.
        """
        before, self._version = self._version, None
        self._settled.clear()
        try:
            async with _engine_errors(), self._paused():
                await self._load(update_info, manifest, before)
        finally:
            self._settled.set()
        return manifest

    async def version(self) -> int | None:
        """Version of the weights, asked of the engine's process; None when the last update failed half way."""
        async with _engine_errors():
            version = int(await self._engine.get_weight_version())
        return version if self._version is not None else None

    async def close(self) -> None:
        """End the engine's process."""
        await asyncio.to_thread(self._engine.shutdown)

    async def _load(self, update_info: dict[str, Any], manifest: WeightsManifest, before: int | None) -> None:
        request = WeightTransferUpdateRequest(update_info=update_info)
        loaded_before = await self._loaded()
        try:
            await self._engine.start_weight_update()
            await self._engine.update_weights(request)
            await self._engine.finish_weight_update(weight_version=str(manifest.version))
        except EngineDeadError:
            raise
        except Exception as error:
            if await self._loaded() == loaded_before:
                self._version = before
            raise WeightsMismatchError(f"the engine did not take the weights: {error}") from error
        loaded, version = await self._loaded(), await self._engine.get_weight_version()
        if loaded != {(manifest.version, manifest.checksum)} or version != str(manifest.version):
            raise WeightsMismatchError(
                f"version {manifest.version} ({manifest.checksum}) was sent, the engine reports {loaded} as version {version}"
            )
        self._version = manifest.version

    @asynccontextmanager
    async def _paused(self) -> AsyncIterator[None]:
        """Nothing is decoded in the block. Where an update failed half way the engine stays paused: it must give no more tokens."""
        if self._in_flight == 0:
            yield
            # Of no use to anybody any more. Only room is gained: the salt keeps them apart.
            await self._engine.reset_prefix_cache()
            return
        await self._engine.pause_generation(mode="keep", clear_cache=False)
        try:
            yield
        finally:
            if self._version is not None:
                await self._engine.resume_generation()

    async def _loaded(self) -> set[tuple[int, str] | None]:
        """What each of the engine's processes loaded last."""
        answers = await self._engine.collective_rpc("loaded_weights")
        return {tuple(answer) if answer else None for answer in answers}

    @asynccontextmanager
    async def _flight(self) -> AsyncIterator[None]:
        self._in_flight += 1
        try:
            yield
        finally:
            self._in_flight -= 1


@asynccontextmanager
async def _engine_errors() -> AsyncIterator[None]:
    try:
        yield
    except EngineDeadError as error:
        raise WorkerLostError(f"the vLLM engine's process has died: {error}") from error
    except (VLLMError, ValueError) as error:
        raise EngineError(f"vLLM failed or refused a request: {error.__cause__ or error}") from error


def _columns(output: RequestOutput) -> Responses:
    parts = output.outputs
    lengths = [len(part.token_ids) for part in parts]
    offsets = np.zeros(len(parts) + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    responses = Responses(
        response_ids=np.concatenate([np.asarray(part.token_ids, np.int32) for part in parts]),
        response_offsets=offsets,
        behaviour_logprobs=np.concatenate([np.asarray(part.logprobs.logprobs, np.float32) for part in parts]),
        policy_versions=np.concatenate([_versions(part) for part in parts]),
        finish_reasons=np.array([_finish_reason(part) for part in parts], np.uint8),
    )
    if not len(responses.response_ids) == len(responses.behaviour_logprobs) == len(responses.policy_versions):
        raise EngineError(
            f"vLLM gave {len(responses.behaviour_logprobs)} log-probabilities for {len(responses.response_ids)} tokens"
        )
    return responses


def _versions(part: CompletionOutput) -> Array:
    """int32 [tokens]: vLLM reports the versions as spans of tokens."""
    spans = part.weight_versions or []
    return np.repeat(
        np.array([int(span.version) for span in spans], np.int32), [span.end - span.start for span in spans]
    )


def _finish_reason(part: CompletionOutput) -> FinishReason:
    if part.finish_reason not in _FINISH_REASONS:
        raise EngineError(
            f"vLLM ended a response with {part.finish_reason!r}, expected one of {sorted(_FINISH_REASONS)}"
        )
    return _FINISH_REASONS[part.finish_reason]
