"""Reward model engine: a transformers sequence-classification model over packed rows, one score per sequence."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
import torch
from transformers import AutoModelForSequenceClassification

from actors.engines.devices import device_name
from actors.engines.hf_engine.packed_attention import PACKED_ATTENTION, PackedLayout
from rlad.contracts import Array
from rlad.errors import EngineError
from rlad.verifiers import RewardModelVerifierConfig


class RewardModelEngine:
    """Decoder with a linear head that scores the hidden state of the last token. Not thread-safe."""

    def __init__(self, config: RewardModelVerifierConfig) -> None:
        """Load the model, onto the GPU if the worker reserves one.

        Raises:
            EngineError: `config.path` has no sequence-classification model with one output.
        """
        torch.set_num_threads(config.threads)
        self._token_budget = config.token_budget
        self._device = torch.device(device_name(config.gpus_per_worker))
        try:
            model, loading = AutoModelForSequenceClassification.from_pretrained(
                config.path,
                dtype=getattr(torch, config.dtype),
                attn_implementation=PACKED_ATTENTION,
                use_safetensors=True,
                output_loading_info=True,
            )
        except (OSError, ValueError) as error:
            raise EngineError(f"cannot load a sequence-classification model from {config.path}: {error}") from error
        if missing := sorted(loading["missing_keys"]):
            # transformers would initialize them randomly, with only a warning.
            raise EngineError(f"{config.path} is not a trained reward model: its checkpoint lacks {', '.join(missing)}")
        head = getattr(model, "score", None)
        if not isinstance(head, torch.nn.Linear) or head.out_features != 1:
            raise EngineError(
                f"{config.path} must be a model with one linear output on its last token (`score`, `num_labels: 1`); "
                f"got a {type(model).__name__} with {model.config.num_labels} labels"
            )
        self._model = model.eval().requires_grad_(False).to(self._device)
        self._max_sequence_tokens = int(model.config.max_position_embeddings)

    @torch.inference_mode()
    def score(self, prompt_ids: Array, response_ids: Array, response_offsets: Array) -> Array:
        """Score every response of a group, together with its prompt.

        Args:
            prompt_ids: Prompt tokens, int32 [P].
            response_ids: Concatenated responses, int32 [N].
            response_offsets: Start of each response and the end of the last, int64 [G + 1].

        Returns:
            Score of each response, float32 [G].

        Raises:
            EngineError: A sequence is longer than the model's context, or a score is not finite.
        """
        sequences = [
            np.concatenate([prompt_ids, response_ids[start:end]])
            for start, end in itertools.pairwise(response_offsets.tolist())
        ]
        longest = max(len(sequence) for sequence in sequences)
        if longest > self._max_sequence_tokens:
            raise EngineError(
                f"a prompt with its response has {longest} tokens; "
                f"the context of the reward model is {self._max_sequence_tokens}"
            )
        scores = np.concatenate([self._score_row(row) for row in _rows(sequences, self._token_budget)])
        if not np.isfinite(scores).all():
            raise EngineError("the reward model returned a score that is not finite")
        return scores

    def _score_row(self, row: list[Array]) -> Array:
        lengths = [len(sequence) for sequence in row]
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
        outputs = self._model.base_model(
            input_ids=self._on_device(np.concatenate(row))[None],
            position_ids=self._on_device(np.concatenate([np.arange(length) for length in lengths]))[None],
            use_cache=False,
            packed_layout=PackedLayout.from_offsets(offsets, self._device),
        )
        last = outputs.last_hidden_state[0].index_select(0, self._on_device(offsets[1:] - 1))
        scores: Array = self._model.score(last)[:, 0].float().cpu().numpy()
        return scores

    def _on_device(self, array: Array) -> torch.Tensor:
        return torch.from_numpy(array.astype(np.int64)).to(self._device)


def _rows(sequences: list[Array], token_budget: int) -> Iterator[list[Array]]:
    """Yield rows of at most `token_budget` tokens, in order. A longer sequence has a row of its own."""
    row: list[Array] = []
    tokens = 0
    for sequence in sequences:
        if row and tokens + len(sequence) > token_budget:
            yield row
            row, tokens = [], 0
        row.append(sequence)
        tokens += len(sequence)
    yield row
