"""What the packed learner is compared with: the same student, loss and optimizer over batches padded to their longest sequence.

It is a favourable one. Sequences are padded on the right, so plain causal attention needs no mask; the output layer runs on response tokens only and
never makes the logits of a whole batch; the optimizer is PyTorch's own, without DeepSpeed around it.

Shape letters: M sequences, L tokens of the longest, S tokens of all.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM

from rlad.config.learner import OptimizerConfig
from rlad.logprobs import selected_logprobs
from rlad.objectives import Objective
from rlad.training_batch import TrainingBatch


def padded_microbatches(lengths: Sequence[int], *, token_budget: int, sort: bool) -> list[list[int]]:
    """Cut sequences into batches of at most `token_budget` tokens, padding included; a longer one goes alone.

    Args:
        sort: by length, which pads least; otherwise in the order given.
    """
    order = sorted(range(len(lengths)), key=lambda index: -lengths[index]) if sort else list(range(len(lengths)))
    batches: list[list[int]] = [[]]
    for index in order:
        grown = [*batches[-1], index]
        if batches[-1] and len(grown) * max(lengths[each] for each in grown) > token_budget:
            batches.append([index])
        else:
            batches[-1] = grown
    return batches


class PaddedLearner:
    """One student, stepped on padded batches."""

    def __init__(self, model_path: Path, *, optimizer: OptimizerConfig, objective: Objective[Any]) -> None:
        self._model = AutoModelForCausalLM.from_pretrained(
            model_path, dtype=torch.float32, attn_implementation="sdpa"
        ).train()
        self._adamw = torch.optim.AdamW(
            self._model.parameters(),
            lr=optimizer.lr,
            betas=optimizer.betas,
            eps=optimizer.eps,
            weight_decay=optimizer.weight_decay,
            fused=True,
        )
        self._max_norm = optimizer.max_gradient_norm
        self._objective = objective

    def accumulate(self, batch: TrainingBatch) -> float:
        """Forward and backward of the sequences of a packed row, padded. Returns the loss."""
        offsets = batch.sequence_offsets.tolist()
        sequences = [torch.from_numpy(batch.token_ids[start:end]) for start, end in itertools.pairwise(offsets)]
        longest = max(len(sequence) for sequence in sequences)
        token_ids = torch.stack([F.pad(sequence, (0, longest - len(sequence))) for sequence in sequences])
        hidden = self._model.base_model(input_ids=token_ids, use_cache=False).last_hidden_state
        row = torch.cat(
            [hidden[number, : len(sequence)] for number, sequence in enumerate(sequences)]
        )  # [S, hidden], as the packed row has them
        positions = torch.from_numpy(batch.weights).nonzero().flatten()

        def chosen(column: Any) -> torch.Tensor:
            return torch.from_numpy(column).index_select(0, positions)

        loss = self._objective.packed(
            policy_logprobs=selected_logprobs(
                row.index_select(0, positions), self._model.lm_head.weight, chosen(batch.target_ids)
            ),
            behaviour_logprobs=chosen(batch.behaviour_logprobs),
            teacher_logprobs=None if batch.teacher_logprobs is None else chosen(batch.teacher_logprobs),
            advantages=chosen(batch.advantages),
            weights=chosen(batch.weights),
        ).loss
        loss.backward()
        return float(loss.detach())

    def step(self) -> float:
        """Clip, step, and forget the gradient. Returns its norm before clipping."""
        norm = torch.nn.utils.clip_grad_norm_(self._model.parameters(), self._max_norm)
        self._adamw.step()
        self._adamw.zero_grad()
        return float(norm)
