"""Sampling with vLLM: an `AsyncLLM` with log-probabilities at the sampling temperature, and weight updates.

Import this module only after calling `settings.apply_environment`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from vllm import SamplingParams
from vllm.config.weight_transfer import WeightTransferConfig
from vllm.distributed.weight_transfer.base import WeightTransferInitRequest, WeightTransferUpdateRequest
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.exceptions import VLLMError
from vllm.inputs import tokens_input
from vllm.outputs import CompletionOutput, RequestOutput
from vllm.sampling_params import RequestOutputKind
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.exceptions import EngineDeadError
from vllm.v1.metrics.loggers import StatLoggerBase
from vllm.v1.metrics.stats import IterationStats, SchedulerStats

from actors.engines.vllm_engine.generation_meter import GenerationMeter
from actors.engines.vllm_engine.settings import MASK, VllmSettings, engine_args
from rlad.contracts import Array, FinishReason, GenerationProgress, WeightsManifest
from rlad.errors import EngineError, WeightsMismatchError, WorkerLostError
from rlad.tokenizers.stopping import StopRules

# Its module registers the weight-transfer engines under `rlad_<transport>`. Import it in vLLM's own processes only.
_EXTENSION = "actors.engines.vllm_engine.weight_loading.WeightsExtension"
_FINISH_REASONS = {"stop": FinishReason.STOP, "length": FinishReason.LENGTH}


@dataclass(frozen=True, slots=True, kw_only=True)
class Responses:
    """The G responses to one prompt, N tokens in total. The columns are those of `RolloutGroup`."""

    response_ids: Array
    response_offsets: Array
    behaviour_logprobs: Array
    policy_versions: Array
    finish_reasons: Array


class VllmSampler:
    """Sampling engine. It starts with the weights at its model path, as policy version 0.

    Create and use it in one event loop. The model runs in a separate process; if that process dies, every method raises
    `WorkerLostError`.
    """

    def __init__(self, settings: VllmSettings) -> None:
        """Start the engine; takes about 20 s on CPU.

        Raises:
            EngineError: The engine does not start.
        """
        self._meter = GenerationMeter()
        try:
            self._engine = AsyncLLM.from_engine_args(
                sampler_arguments(settings), stat_loggers=[lambda *_: _IterationLogger(self._end_iteration)]
            )
        except Exception as error:
            raise EngineError(
                f"vLLM does not start with the model at {settings.model_path}: {error} "
                f"(see its log: {Path('/proc/self/fd/2').readlink()})"
            ) from error
        self._settings = settings
        self._version: int | None = None
        self._in_flight = 0
        # Cleared during a weight update.
        self._settled = asyncio.Event()
        self._settled.set()

    async def start(self) -> None:
        """Mask the ids that must not be sampled, and tell the engine that its initial weights are version 0."""
        async with _engine_errors():
            if self._settings.vocabulary_size is not None:
                await self._engine.collective_rpc(MASK, args=(self._settings.vocabulary_size,))
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
        """Sample responses to one prompt. Waits during a weight update. Cancelling the call aborts the request.

        If the weights are updated while the request is in flight, the new weights sample the remaining tokens. The
        policy version is recorded for each token.

        Args:
            prompt_ids: Prompt tokens, int32 [P].
            request_id: Id, unique among the requests in flight.
            num_responses: Number of responses G.
            max_response_tokens: Maximum length of a response. A response that reaches it is truncated; any other
                response ends with a stop token, or with the token that completes a stop string.
            temperature: Sampling temperature. 0 selects the most likely token; its log-probabilities are then those at
                temperature 1.
            top_p: Nucleus mass. Below 1, log-probabilities are those of the truncated distribution.
            seed: Seed of the samples, combined with the response index. The samples are reproducible up to rounding,
                which depends on the composition of batches. None uses the engine's random stream.

        Raises:
            EngineError: The engine refused the request.
            WeightsMismatchError: The last weight update failed half way, so this engine cannot sample.
        """
        await self._settled.wait()  # unlimited wait: the driver cancels the call at the group's deadline
        version = self._version
        if version is None:
            raise WeightsMismatchError(
                "this engine has no weights to sample from because its last update failed half way"
            )
        async with self._flight(), _engine_errors():
            parameters = sampling_parameters(
                self._settings.stop,
                n=num_responses,
                max_tokens=max_response_tokens,
                temperature=temperature,
                top_p=top_p,
                seed=seed,
            )
            # Salt the prefix cache with the policy version, so that keys and values of old weights are never reused.
            prompt = tokens_input(prompt_ids.tolist(), cache_salt=str(version))
            outputs = [output async for output in self._engine.generate(prompt, parameters, request_id)]
        return _columns(outputs[-1])

    async def join_transfer(self, init_info: dict[str, Any]) -> None:
        """Join the process group of a transfer and leave the previous one. Blocks the engine until all have joined.

        Args:
            init_info: Initialization record of vLLM's weight transfer, for this transport.

        Raises:
            EngineError: Another process did not join.
        """
        async with _engine_errors():
            try:
                await self._engine.shutdown_weight_transfer_engine()
                await self._engine.init_weight_transfer_engine(WeightTransferInitRequest(init_info=init_info))
            except EngineDeadError:
                raise
            except Exception as error:
                raise EngineError(f"the engine could not join the weight transfer: {error}") from error

    async def update_weights(self, update_info: dict[str, Any], manifest: WeightsManifest) -> WeightsManifest:
        """Load new weights.

        Requests in flight pause and then continue with the new weights. The keys and values of their earlier tokens
        remain those of the old weights.

        Args:
            update_info: Update record of vLLM's weight transfer, for this transport: the location of the weights, or
                the tensors to receive.
            manifest: Expected version, checksum and size.

        Returns:
            The manifest that the engine reports.

        Raises:
            WeightsMismatchError: The engine refused the weights and keeps its old ones; or loading failed half way, and
                the engine cannot sample any more.
        """
        before, self._version = self._version, None
        self._settled.clear()
        try:
            async with _engine_errors(), self._paused():
                with self._meter.paused():
                    await self._load(update_info, manifest, before)
        finally:
            self._settled.set()
        return manifest

    async def version(self) -> int | None:
        """Return the policy version that the engine's process reports; None if the last update failed half way."""
        async with _engine_errors():
            version = int(await self._engine.get_weight_version())
        return version if self._version is not None else None

    def progress(self) -> GenerationProgress:
        """Return what the engine has generated since it started."""
        return self._meter.progress()

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
            raise WeightsMismatchError(f"the engine did not load the weights: {error}") from error
        loaded, version = await self._loaded(), await self._engine.get_weight_version()
        if loaded != {(manifest.version, manifest.checksum)} or version != str(manifest.version):
            raise WeightsMismatchError(
                f"expected version {manifest.version} with checksum {manifest.checksum} after the update; "
                f"the engine reports version {version} and {loaded}"
            )
        self._version = manifest.version

    @asynccontextmanager
    async def _paused(self) -> AsyncIterator[None]:
        """Pause decoding during the block. After an update that failed half way, the engine stays paused for good."""
        if self._in_flight == 0:
            yield
            # Frees memory only. Stale entries are never used, since their keys are salted with an older version.
            await self._engine.reset_prefix_cache()
            return
        await self._engine.pause_generation(mode="keep", clear_cache=False)
        try:
            yield
        finally:
            if self._version is not None:
                await self._engine.resume_generation()

    async def _loaded(self) -> set[tuple[int, str] | None]:
        """Return the version and checksum that each of the engine's processes loaded last."""
        # `WeightsExtension.loaded_weights`: vLLM looks the method up by this name.
        answers = await self._engine.collective_rpc("loaded_weights")
        return {tuple(answer) if answer else None for answer in answers}

    @asynccontextmanager
    async def _flight(self) -> AsyncIterator[None]:
        self._in_flight += 1
        try:
            yield
        finally:
            self._in_flight -= 1
            if self._in_flight == 0:
                self._end_iteration(tokens=0, running=0)  # an aborted request ends without an iteration

    def _end_iteration(self, tokens: int, running: int) -> None:
        # The engine may still count a request that this process has aborted.
        self._meter.record(tokens=tokens, running=running if self._in_flight else 0)


class _IterationLogger(StatLoggerBase):
    """Reports the generated tokens and the running sequences of each iteration. vLLM calls it."""

    def __init__(self, report: Callable[[int, int], None]) -> None:
        self._report = report

    def record(
        self,
        scheduler_stats: SchedulerStats | None,
        iteration_stats: IterationStats | None,
        mm_cache_stats: object = None,
        engine_idx: int = 0,
    ) -> None:
        if scheduler_stats is not None:
            tokens = iteration_stats.num_generation_tokens if iteration_stats is not None else 0
            self._report(tokens, scheduler_stats.num_running_reqs)

    def log_engine_initialized(self) -> None:
        pass


@asynccontextmanager
async def _engine_errors() -> AsyncIterator[None]:
    try:
        yield
    except EngineDeadError as error:
        raise WorkerLostError(f"the vLLM engine's process has died: {error}") from error
    except (VLLMError, ValueError) as error:
        raise EngineError(f"vLLM failed or refused a request: {error.__cause__ or error}") from error


def sampler_arguments(settings: VllmSettings) -> AsyncEngineArgs:
    """Return the arguments of a sampling engine."""
    return engine_args(
        settings,
        # Log-probabilities after temperature and top-p: those of the behaviour policy in the importance ratio.
        logprobs_mode="processed_logprobs",
        enable_prefix_caching=True,
        # When only a part of a prompt is computed, vLLM rewinds the random stream of a request with a seed. It cannot
        # do that on CPU, and the engine ends. Whole prompts need no rewinding.
        enable_chunked_prefill=settings.arguments.get("enable_chunked_prefill", None if settings.on_gpu else False),
        weight_transfer_config=WeightTransferConfig(backend=f"rlad_{settings.weight_transport}"),
        worker_extension_cls=_EXTENSION,
    )


def sampling_parameters(stop: StopRules, **settings: Any) -> SamplingParams:
    """Return sampling parameters for token ids and their log-probabilities only.

    Stop strings need the text. It then includes special tokens, because a stop string may be one. vLLM adds the
    end-of-sequence tokens of the model's generation configuration itself; they are also in `stop`.
    """
    return SamplingParams(
        logprobs=0,
        flat_logprobs=True,
        detokenize=bool(stop.strings),
        skip_special_tokens=False,
        stop=list(stop.strings),
        stop_token_ids=list(stop.token_ids),
        output_kind=RequestOutputKind.FINAL_ONLY,
        **settings,
    )


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
            f"expected a log-probability and a version for each of {len(responses.response_ids)} tokens; vLLM returned "
            f"{len(responses.behaviour_logprobs)} and {len(responses.policy_versions)}"
        )
    return responses


def _versions(part: CompletionOutput) -> Array:
    """Return the policy version of each token, int32 [N]. vLLM reports them as spans of tokens."""
    spans = part.weight_versions or []
    return np.repeat(
        np.array([int(span.version) for span in spans], np.int32), [span.end - span.start for span in spans]
    )


def _finish_reason(part: CompletionOutput) -> FinishReason:
    if part.finish_reason not in _FINISH_REASONS:
        raise EngineError(
            f"expected a finish reason in {sorted(_FINISH_REASONS)}; vLLM returned {part.finish_reason!r}"
        )
    return _FINISH_REASONS[part.finish_reason]
