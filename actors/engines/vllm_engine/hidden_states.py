"""Hidden states of a teacher with vLLM, through its pooling runner."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING

import numpy as np
import torch

from actors.engines.scorer import TokenScores
from actors.engines.vllm_engine.scorer import VllmScorer, scorer_arguments
from actors.engines.vllm_engine.settings import VllmSettings
from rlad.config import TeacherConfig
from rlad.contracts import TeacherSupport
from rlad.errors import ScoringRefusedError
from rlad.models.hidden_arrays import to_array

if TYPE_CHECKING:
    from vllm.engine.arg_utils import AsyncEngineArgs


class VllmHiddenStates(VllmScorer):
    """`Scorer` that returns the last hidden state of each token instead of its log-probability.

    The pooling runner returns the output of the model's last norm for every token, as it stands in front of the output
    layer, which this engine does not load. The states are independent of the sampling temperature, so every temperature
    is possible. The engine keeps the states of a prompt and its response until the last chunk of the prefill.
    """

    def __init__(self, config: TeacherConfig) -> None:
        """Start the engine. Rows of the output layer without a token of the student are the learner's concern.

        Raises:
            EngineError: The engine does not start.
        """
        super().__init__(config)
        self._dtype: torch.dtype = getattr(torch, config.dtype)
        self._hidden_size = self._engine.model_config.get_hidden_size()

    def _arguments(self, settings: VllmSettings, token_budget: int, vocabulary: int) -> AsyncEngineArgs:
        return hidden_state_arguments(settings, token_budget=token_budget, vocabulary=vocabulary)

    def _require_possible(self, temperature: float, support: TeacherSupport) -> None:
        if support != "hidden_states":
            raise ScoringRefusedError(f"this teacher engine returns hidden states only; got a request for {support}")

    def _no_scores(self, support: int) -> TokenScores:
        return TokenScores.of_hidden_states(to_array(torch.empty((0, self._hidden_size), dtype=self._dtype)))

    def _has_nan(self, scores: TokenScores) -> bool:
        return not scores.is_complete

    async def _run(self, prompt: list[int], response: list[int], support: int) -> TokenScores:
        from vllm import PoolingParams, TokensPrompt

        # The last token is a target only.
        request = self._engine.encode(
            TokensPrompt(prompt_token_ids=(prompt + response)[:-1]),
            PoolingParams(task="token_embed", use_activation=False),
            request_id=uuid.uuid4().hex,
        )
        output = await self._output_of(request, prompt, response)
        states = to_array(output.outputs.data.to(self._dtype))[len(prompt) - 1 :]
        # A copy, so that the states of the prompt are freed.
        return TokenScores.of_hidden_states(np.ascontiguousarray(states).copy())


def hidden_state_arguments(settings: VllmSettings, *, token_budget: int, vocabulary: int) -> AsyncEngineArgs:
    """Return the arguments of an engine that returns hidden states: those of scoring, with the pooling runner.

    Args:
        settings: Engine settings.
        token_budget: Maximum number of tokens of a prefill batch.
        vocabulary: Entries of the output layer.
    """
    from vllm.config import PoolerConfig

    arguments = scorer_arguments(settings, token_budget=token_budget, vocabulary=vocabulary)
    arguments.runner = "pooling"
    arguments.convert = "embed"
    # `use_activation` would normalize the states to length 1. In the model's data type nothing is rounded.
    arguments.pooler_config = PoolerConfig(task="token_embed", use_activation=False)
    overrides = arguments.hf_overrides if isinstance(arguments.hf_overrides, dict) else {}
    arguments.hf_overrides = {**overrides, "head_dtype": "model"}
    return arguments
