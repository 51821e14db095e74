"""Scoring with vLLM, through the `prompt_logprobs` of prompt and response."""

from __future__ import annotations

import asyncio
import itertools
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from actors.engines.scorer import TokenScores, support_size
from actors.engines.vllm_engine.settings import MASK, VllmSettings, apply_environment, engine_args, ray_metrics
from rlad.config import TeacherConfig
from rlad.contracts import Array, TeacherSupport
from rlad.errors import EngineError, ScoringRefusedError, WorkerLostError

if TYPE_CHECKING:
    from vllm.engine.arg_utils import AsyncEngineArgs

# Maximum number of prefills in a batch. The token budget is the tighter limit in practice.
_MAX_SEQUENCES = 256
# Rounding error of float32 probabilities near 1.
_SMALLEST_TAIL = float(np.finfo(np.float32).eps)
# A path, because vLLM imports the class in its own processes.
_EXTENSION = "actors.engines.vllm_engine.kv_cache.KvCacheExtension"


class VllmScorer:
    """`Scorer` over an `AsyncLLM`. Each response is one request; vLLM batches the requests continuously.

    vLLM computes prompt log-probabilities at temperature 1 only. It generates at least one token per request, which is
    dropped. It converts every log-probability to a Python number, so a support of the full vocabulary is refused.

    The keys and values of a sequence whose scores are NaN stay in the KV cache after it. vLLM's CPU attention
    multiplies values behind the end of a sequence by a weight of 0, which gives NaN, so a later sequence in the same
    block gets NaN scores too. A response with NaN scores is therefore scored again, alone, on a KV cache of zeros.
    """

    def __init__(self, config: TeacherConfig, *, vocabulary_size: int | None = None) -> None:
        """Start the engine.

        Args:
            config: Settings of the teacher.
            vocabulary_size: Number of token ids that the student has. Later ones get probability 0; None means all.

        Raises:
            EngineError: The engine does not start.
        """
        model = _model_limits(config.path)
        self._vocabulary = min(model.vocabulary, vocabulary_size or model.vocabulary)
        self._masks = self._vocabulary < model.vocabulary
        self._masking: asyncio.Task[None] | None = None
        settings = scorer_settings(config, context_tokens=model.context_tokens)
        apply_environment(settings)
        from vllm.v1.engine.async_llm import AsyncLLM

        arguments = self._arguments(settings, config.token_budget, model.vocabulary)
        try:
            self._engine = AsyncLLM.from_engine_args(arguments, stat_loggers=ray_metrics() or None)
        except (RuntimeError, ValueError, OSError) as error:
            raise EngineError(f"vLLM does not start with the model at {config.path}: {error}") from error
        self._use = _EngineUse()
        self._cache_holds_nan = False

    async def score(
        self,
        prompt_ids: Array,
        response_ids: Array,
        response_offsets: Array,
        temperature: float,
        support: TeacherSupport = None,
    ) -> TokenScores:
        self._require_possible(temperature, support)
        size = support_size(support, self._vocabulary)
        if self._masks:
            if self._masking is None:  # the constructor runs without an event loop
                self._masking = asyncio.create_task(self._mask())
            await asyncio.shield(self._masking)
        prompt = prompt_ids.tolist()
        responses = [response_ids[start:end].tolist() for start, end in itertools.pairwise(response_offsets)]
        scores = await asyncio.gather(
            *(self._score_response(prompt, response, size) for response in responses if response)
        )
        return TokenScores.concatenate(scores) if scores else self._no_scores(size)

    def _arguments(self, settings: VllmSettings, token_budget: int, vocabulary: int) -> AsyncEngineArgs:
        return scorer_arguments(settings, token_budget=token_budget, vocabulary=vocabulary)

    def _require_possible(self, temperature: float, support: TeacherSupport) -> None:
        """Refuse what this engine does not score.

        Raises:
            ScoringRefusedError: With the reason.
        """
        if temperature != 1.0:
            raise ScoringRefusedError(
                f"the vllm teacher engine scores at temperature 1 only; the group was sampled at {temperature}: "
                "use the transformers engine"
            )
        if support == "full":
            raise ScoringRefusedError(
                "the vllm teacher engine scores a limited number of most likely tokens, not the full vocabulary: "
                "use the transformers engine, or teacher.send hidden_states"
            )

    def _no_scores(self, support: int) -> TokenScores:
        return TokenScores.empty(0, support)

    async def _mask(self) -> None:
        await self._engine.collective_rpc(MASK, args=(self._vocabulary,))

    async def _score_response(self, prompt: list[int], response: list[int], support: int) -> TokenScores:
        async with self._use.shared():
            scores = await self._run(prompt, response, support)
        if not self._has_nan(scores):
            return scores
        self._cache_holds_nan = True
        async with self._use.alone():
            if self._cache_holds_nan:
                await self._clear_kv_cache()
            scores = await self._run(prompt, response, support)
            self._cache_holds_nan = self._has_nan(scores)
        return scores

    def _has_nan(self, scores: TokenScores) -> bool:
        return bool(np.isnan(scores.logprobs).any())

    async def _clear_kv_cache(self) -> None:
        from vllm.v1.engine.exceptions import EngineDeadError

        try:
            await self._engine.collective_rpc("clear_kv_cache")  # of `KvCacheExtension`
        except EngineDeadError as error:
            raise WorkerLostError(f"the teacher's vLLM engine has died: {error}") from error

    async def _run(self, prompt: list[int], response: list[int], support: int) -> TokenScores:
        from vllm import SamplingParams, TokensPrompt
        from vllm.sampling_params import RequestOutputKind

        sampling = SamplingParams(
            temperature=0.0,
            max_tokens=1,
            prompt_logprobs=support,
            detokenize=False,
            flat_logprobs=True,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        request = self._engine.generate(
            TokensPrompt(prompt_token_ids=prompt + response), sampling, request_id=uuid.uuid4().hex
        )
        found = (await self._output_of(request, prompt, response)).prompt_logprobs
        return response_scores(
            found.token_ids, found.logprobs, len(response), support=support, vocabulary=self._vocabulary
        )

    async def _output_of(self, request: AsyncIterator[Any], prompt: list[int], response: list[int]) -> Any:
        """Return the only output of a request."""
        from vllm.exceptions import VLLMError
        from vllm.v1.engine.exceptions import EngineDeadError

        try:
            [output] = [output async for output in request]
        except EngineDeadError as error:
            raise WorkerLostError(f"the teacher's vLLM engine has died: {error}") from error
        except VLLMError as error:
            raise EngineError(
                f"vLLM cannot score a prompt of {len(prompt)} and a response of {len(response)} tokens: {error}"
            ) from error
        return output

    async def check_health(self) -> None:
        if self._engine.errored:
            raise EngineError("the teacher's vLLM engine has died")

    def close(self) -> None:
        self._engine.shutdown()


class _EngineUse:
    """Lets many requests use the engine together, or one request alone, which goes before new ones."""

    def __init__(self) -> None:
        self._changed = asyncio.Condition()
        self._num_shared = 0
        self._num_alone = 0  # waiting or running
        self._one = asyncio.Lock()

    @asynccontextmanager
    async def shared(self) -> AsyncIterator[None]:
        async with self._changed:
            await self._changed.wait_for(lambda: self._num_alone == 0)
            self._num_shared += 1
        try:
            yield
        finally:
            self._num_shared -= 1
            await self._notify()

    @asynccontextmanager
    async def alone(self) -> AsyncIterator[None]:
        self._num_alone += 1
        try:
            async with self._one:
                async with self._changed:
                    await self._changed.wait_for(lambda: self._num_shared == 0)
                yield
        finally:
            self._num_alone -= 1
            await self._notify()

    async def _notify(self) -> None:
        async with self._changed:
            self._changed.notify_all()


def scorer_settings(config: TeacherConfig, *, context_tokens: int) -> VllmSettings:
    """Return the engine settings of a teacher.

    Args:
        config: Settings of the teacher.
        context_tokens: Maximum sequence length of its model.
    """
    return VllmSettings(
        model_path=config.path,
        dtype=config.dtype,
        max_sequence_tokens=context_tokens,
        max_sequences=min(_MAX_SEQUENCES, config.token_budget),
        seed=0,
        on_gpu=config.gpus_per_replica > 0,
        tensor_parallel=config.tensor_parallel,
        gpu_memory_fraction=config.gpu_memory_fraction,
        kv_cache_gib=config.kv_cache_gib,
        threads=config.threads,
        arguments=config.engine_args,
    )


def scorer_arguments(settings: VllmSettings, *, token_budget: int, vocabulary: int) -> AsyncEngineArgs:
    """Return the arguments of a scoring engine.

    There is no prefix cache: vLLM recomputes the whole prompt when its log-probabilities are requested.

    Args:
        settings: Engine settings.
        token_budget: Maximum number of tokens of a prefill batch. It also bounds memory. On CPU, where vLLM's first
            model runner computes them, the logits of the whole batch, [tokens, vocabulary], exist at once. On GPU the
            second model runner computes those of 1,024 tokens at a time.
        vocabulary: Entries of the output layer. The bound only limits requests: runs that share this teacher may
            request supports of different sizes.
    """
    return engine_args(
        settings,
        enable_prefix_caching=False,
        max_num_batched_tokens=token_budget,
        max_logprobs=vocabulary,
        worker_extension_cls=_EXTENSION,
    )


def response_scores(
    token_ids: Sequence[int], logprobs: Sequence[float], num_tokens: int, *, support: int, vocabulary: int
) -> TokenScores:
    """Return the scores of one response from vLLM's flat lists.

    Args:
        token_ids: Token ids, [1 + K] for each predicted token of prompt and response: the token itself, then the K most
            likely tokens.
        logprobs: Log-probabilities of `token_ids`.
        num_tokens: Number of response tokens N.
        support: Support size K.
        vocabulary: Vocabulary size. A support of this size has an empty tail.
    """
    start = len(logprobs) - num_tokens * (1 + support)
    values = np.array(logprobs[start:], np.float32).reshape(num_tokens, 1 + support)
    if support == 0:
        return TokenScores(logprobs=values[:, 0])
    ids = np.array(token_ids[start:], np.int32).reshape(values.shape)
    tail = np.full(num_tokens, -np.inf, np.float32) if support == vocabulary else _tail_logprobs(values[:, 1:])
    return TokenScores(
        logprobs=values[:, 0], support_ids=ids[:, 1:], support_logprobs=values[:, 1:], tail_logprobs=tail
    )


def _tail_logprobs(support_logprobs: Array) -> Array:
    """Return the log of the probability outside a support, float32 [N], from its log-probabilities, float32 [N, K].

    The tail is computed as one minus the support's probability, because vLLM reports nothing else. It is at least
    `_SMALLEST_TAIL`, the noise of that difference. A tail of -inf would mean a support of the full vocabulary, and the
    loss would then ignore the student's own probability outside the support.
    """
    inside = np.exp(support_logprobs.astype(np.float64)).sum(axis=1)
    tail: Array = np.log1p(-np.minimum(inside, 1 - _SMALLEST_TAIL)).astype(np.float32)
    return tail


@dataclass(frozen=True, slots=True, kw_only=True)
class _ModelLimits:
    context_tokens: int
    vocabulary: int


def _model_limits(model_path: str) -> _ModelLimits:
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(model_path, trust_remote_code=False).get_text_config()
    return _ModelLimits(context_tokens=int(config.max_position_embeddings), vocabulary=int(config.vocab_size))
