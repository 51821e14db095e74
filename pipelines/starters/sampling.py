"""Batched sampling and accuracy of starter models, without an inference engine."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from transformers import Qwen3ForCausalLM
from transformers.cache_utils import Cache, DynamicLayer

from pipelines.starters.tokenizer import END_ID, PAD_ID, VOCABULARY, encode
from pipelines.starters.traces import longest_trace
from rlad.data.knights_knaves.compact import render_answer, render_prompt
from rlad.data.knights_knaves.puzzle import Puzzle
from rlad.evaluation.accuracy import EvaluationSummary, PromptResult, summarise
from rlad.verifiers import build_verifier

_MAX_ROWS = 256
_SPARE_TOKENS = 64
_WORTH_SHRINKING = 0.75
_SYMBOLS = list(VOCABULARY)


class _PreallocatedLayer(DynamicLayer):
    """Key-value cache of one layer with spare capacity.

    Appending a token does not copy the cache, unlike in transformers' own layer.
    """

    keys: torch.Tensor
    values: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self._buffers: dict[str, torch.Tensor] = {}

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: object, **kwargs: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        length = self.get_seq_length()
        self.keys = self._append("keys", self.keys, key_states, length)
        self.values = self._append("values", self.values, value_states, length)
        return self.keys, self.values

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        super().batch_select_indices(indices)
        self._buffers.clear()

    def _append(self, name: str, held: torch.Tensor, new: torch.Tensor, length: int) -> torch.Tensor:
        rows, heads, added, size = new.shape
        end = length + added
        if name not in self._buffers or self._buffers[name].shape[2] < end:
            self._buffers[name] = new.new_empty(rows, heads, end + _SPARE_TOKENS, size)
            if length:
                self._buffers[name][:, :, :length] = held
        self._buffers[name][:, :, length:end] = new
        return self._buffers[name][:, :, :end]


@torch.inference_mode()
def sample_responses(
    model: Qwen3ForCausalLM,
    prompts: Sequence[Sequence[int]],
    *,
    temperature: float,
    max_tokens: int,
    generator: torch.Generator,
) -> list[list[int]]:
    """Sample one response per prompt.

    Prompts are padded on the left. Finished rows are removed from the batch once there are enough of them to justify
    the copy.

    Args:
        model: The model.
        prompts: Token ids of each prompt.
        temperature: Sampling temperature; 0 means greedy.
        max_tokens: Maximum response length, in tokens.
        generator: Random number generator.

    Returns:
        Token ids of each response, including the end of sequence if it was reached.
    """
    longest = max(map(len, prompts))
    token_ids = torch.tensor([[PAD_ID] * (longest - len(prompt)) + list(prompt) for prompt in prompts])
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    responses: list[list[int]] = [[] for _ in prompts]
    rows, active = torch.arange(len(prompts)), torch.ones(len(prompts), dtype=torch.bool)
    cache = Cache(layer_class_to_replicate=_PreallocatedLayer)
    for _ in range(max_tokens):
        output = model(
            input_ids=token_ids, attention_mask=mask, position_ids=positions, past_key_values=cache, logits_to_keep=1
        )
        chosen = _choose(output.logits[:, -1], temperature, generator)
        for row, token in zip(rows[active].tolist(), chosen[active].tolist(), strict=True):
            responses[row].append(token)
        active &= chosen != END_ID
        if not active.any():
            break
        if active.sum() <= _WORTH_SHRINKING * len(active):
            kept = active.nonzero().squeeze(-1)
            cache.batch_select_indices(kept)
            rows, chosen, mask, positions, active = rows[kept], chosen[kept], mask[kept], positions[kept], active[kept]
        token_ids, positions = chosen[:, None], positions[:, -1:] + 1
        mask = torch.cat([mask, torch.ones_like(token_ids)], dim=-1)
    return responses


def _choose(logits: torch.Tensor, temperature: float, generator: torch.Generator) -> torch.Tensor:
    if temperature == 0:
        return logits.argmax(-1)
    return torch.multinomial((logits / temperature).softmax(-1), 1, generator=generator).squeeze(-1)


def measure_accuracy(
    model: Qwen3ForCausalLM,
    puzzles: Sequence[Puzzle],
    *,
    temperature: float,
    samples: int,
    seed: int,
    on_responses: Callable[[int], None],
) -> EvaluationSummary:
    """Return the accuracy on puzzles, grouped by number of people.

    Args:
        model: The model.
        puzzles: Puzzles to solve.
        temperature: Sampling temperature; 0 means greedy.
        samples: Responses per puzzle.
        seed: Random seed.
        on_responses: Called after each batch with its number of responses.
    """
    generator = torch.Generator().manual_seed(seed)
    verifier = build_verifier({"name": "knights_knaves", "form": "compact"})
    results = []
    for num_people in sorted({puzzle.num_people for puzzle in puzzles}):
        chosen = [puzzle for puzzle in puzzles if puzzle.num_people == num_people]
        prompts = [encode(render_prompt(puzzle)) for puzzle in chosen for _ in range(samples)]
        responses: list[list[int]] = []
        for start in range(0, len(prompts), _MAX_ROWS):
            part = prompts[start : start + _MAX_ROWS]
            responses += sample_responses(
                model, part, temperature=temperature, max_tokens=longest_trace(num_people), generator=generator
            )
            on_responses(len(part))
        for index, puzzle in enumerate(chosen):
            own = responses[index * samples : (index + 1) * samples]
            ended = [response[-1] == END_ID for response in own]
            texts = ["".join(_SYMBOLS[token] for token in response) for response in own]
            verdicts = [verifier.verify(text, render_answer(puzzle.solution)) for text in texts]
            results.append(
                PromptResult(
                    prompt_id=render_prompt(puzzle),
                    groups=(str(num_people),),
                    rewards=tuple(verdict.reward if end else 0.0 for verdict, end in zip(verdicts, ended, strict=True)),
                    response_tokens=tuple(map(len, own)),
                    num_truncated=ended.count(False),
                )
            )
    return summarise(results)
