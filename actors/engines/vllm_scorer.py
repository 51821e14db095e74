"""Scoring with vLLM: `prompt_logprobs` of prompt and response."""

from __future__ import annotations

import asyncio
import itertools
import uuid

import numpy as np

from actors.engines.vllm_settings import VllmSettings, apply_environment, engine_args
from rlad.config import TeacherConfig
from rlad.contracts import Array
from rlad.errors import EngineError, WorkerLostError

# Prefills that may be in one batch. The token budget is what bounds a batch; this is beyond what it lets in.
_MAX_SEQUENCES = 256


class VllmScorer:
    """A `Scorer` over an `AsyncLLM`, which batches continuously by itself: every response is a request of its own.

    vLLM gives log-probabilities of prompts at temperature 1 only, and generates at least one token a request, which is dropped.
    """

    def __init__(self, config: TeacherConfig) -> None:
        """Start the engine.

        Raises:
            EngineError: it does not start.
        """
        max_sequences = min(_MAX_SEQUENCES, config.token_budget)
        settings = VllmSettings(
            model_path=config.path,
            dtype=config.dtype,
            max_sequence_tokens=_context_length(config.path),
            max_sequences=max_sequences,
            seed=0,
            on_gpu=config.gpus_per_replica > 0,
            tensor_parallel=config.tensor_parallel,
            gpu_memory_fraction=config.gpu_memory_fraction,
            kv_cache_gib=config.kv_cache_gib,
            threads=config.threads,
        )
        apply_environment(settings)
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind
        from vllm.v1.engine.async_llm import AsyncLLM

        # Prefixes are not cached: vLLM recomputes the whole prompt where its log-probabilities are asked for.
        # The budget bounds memory too: logits of a whole prefill batch, [tokens, vocabulary], exist at once.
        arguments = engine_args(settings, enable_prefix_caching=False, max_num_batched_tokens=config.token_budget)
        try:
            self._engine = AsyncLLM.from_engine_args(arguments)
        except (RuntimeError, ValueError, OSError) as error:
            raise EngineError(f"vLLM does not start on {config.path}: {error}") from error
        self._sampling = SamplingParams(
            temperature=0.0, max_tokens=1, prompt_logprobs=0, detokenize=False, flat_logprobs=True, output_kind=RequestOutputKind.FINAL_ONLY
        )

    async def score(self, prompt_ids: Array, response_ids: Array, response_offsets: Array, temperature: float) -> Array:
        if temperature != 1.0:
            raise EngineError(
                f"the vllm teacher engine scores at temperature 1 only, the group was sampled at {temperature}: use the transformers engine"
            )
        prompt = prompt_ids.tolist()
        responses = [response_ids[start:end].tolist() for start, end in itertools.pairwise(response_offsets)]
        scores = await asyncio.gather(*(self._score_response(prompt, response) for response in responses if response))
        return np.concatenate(scores) if scores else np.empty(0, np.float32)

    async def _score_response(self, prompt: list[int], response: list[int]) -> Array:
        from vllm import TokensPrompt
        from vllm.exceptions import VLLMError
        from vllm.v1.engine.exceptions import EngineDeadError

        request = self._engine.generate(TokensPrompt(prompt_token_ids=prompt + response), self._sampling, request_id=uuid.uuid4().hex)
        try:
            [output] = [output async for output in request]
        except EngineDeadError as error:
            raise WorkerLostError(f"the teacher's vLLM engine has died: {error}") from error
        except VLLMError as error:
            raise EngineError(f"vLLM cannot score a prompt of {len(prompt)} and a response of {len(response)} tokens: {error}") from error
        # One entry a token, but for the first token of the prompt, which nothing predicts.
        return np.array(output.prompt_logprobs.logprobs[len(prompt) - 1 :], np.float32)

    async def check_health(self) -> None:
        if self._engine.errored:
            raise EngineError("the teacher's vLLM engine has died")

    def close(self) -> None:
        self._engine.shutdown()


def _context_length(model_path: str) -> int:
    from transformers import AutoConfig

    return int(AutoConfig.from_pretrained(model_path).max_position_embeddings)
