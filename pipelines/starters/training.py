"""Supervised training of a starter model on one thread."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from transformers import Qwen3Config, Qwen3ForCausalLM

from pipelines.starters.batches import IGNORED, Batch, endless_batches, make_examples
from pipelines.starters.tokenizer import END_ID, PAD_ID, VOCABULARY
from rlad.data.knights_knaves.puzzle import Puzzle
from rlad.starters.recipes import HEAD_DIM, RoleRecipe, StarterArchitecture, TrainingPhase

MAX_POSITIONS = 1024
"""Context length. It covers the longest prompt and trace with 5 people; more people exceed a tiny model's abilities."""

OnStep = Callable[[int, float, int], None]
"""Callback after each step. Arguments: step (from 1, over all phases), loss in nats per token, padded batch tokens."""


def build_model(shape: StarterArchitecture, seed: int) -> Qwen3ForCausalLM:
    """Return a float32 model with random weights."""
    torch.manual_seed(seed)
    config = Qwen3Config(
        vocab_size=len(VOCABULARY),
        hidden_size=shape.hidden_size,
        intermediate_size=shape.feed_forward,
        num_hidden_layers=shape.num_layers,
        num_attention_heads=shape.num_heads,
        num_key_value_heads=shape.num_heads,
        head_dim=HEAD_DIM,
        max_position_embeddings=MAX_POSITIONS,
        tie_word_embeddings=False,
        eos_token_id=END_ID,
        pad_token_id=PAD_ID,
        bos_token_id=None,
        dtype="float32",
    )
    return Qwen3ForCausalLM(config).float()


def train(
    model: Qwen3ForCausalLM, recipe: RoleRecipe, puzzles: Sequence[Puzzle], *, tokens_per_step: int, on_step: OnStep
) -> None:
    """Train a model in place through all phases of a recipe."""
    model.train()
    step = 0
    for number, phase in enumerate(recipe.phases):
        seed = recipe.seed * len(recipe.phases) + number
        batches = endless_batches(
            make_examples(puzzles, phase.traces, seed), tokens_per_step=tokens_per_step, seed=seed
        )
        optimizers = build_optimizers(model, phase)
        for phase_step in range(phase.steps):
            _set_learning_rates(optimizers, share_of_peak(phase_step, phase.steps))
            batch = next(batches)
            loss = training_loss(model, batch)
            torch.autograd.backward(loss)
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
            step += 1
            on_step(step, loss.item(), batch.token_ids.numel())
    model.eval()


def training_loss(model: Qwen3ForCausalLM, batch: Batch) -> torch.Tensor:
    """Return the mean negative log-likelihood of the response tokens, in nats."""
    logits = model(input_ids=batch.token_ids, use_cache=False).logits
    return F.cross_entropy(logits.flatten(0, 1), batch.targets.flatten(), ignore_index=IGNORED)


def build_optimizers(model: Qwen3ForCausalLM, phase: TrainingPhase) -> list[torch.optim.Optimizer]:
    """Return the optimizers of a phase.

    Muon trains the layers' matrices, and AdamW embeddings, head and norms. Without `matrix_learning_rate` AdamW trains
    all parameters.
    """
    matrices = (
        [parameter for parameter in model.model.layers.parameters() if parameter.ndim == 2]
        if phase.matrix_learning_rate
        else []
    )
    chosen = set(map(id, matrices))
    rest = [parameter for parameter in model.parameters() if id(parameter) not in chosen]
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(rest, lr=phase.learning_rate, betas=(0.9, 0.95), weight_decay=0.0)
    ]
    if phase.matrix_learning_rate:
        optimizers.append(torch.optim.Muon(matrices, lr=phase.matrix_learning_rate, weight_decay=0.0))
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["peak_lr"] = group["lr"]
    return optimizers


def share_of_peak(step: int, steps: int) -> float:
    """Return the learning rate of a step (from 0) as a fraction of its peak.

    The rate is constant and decays linearly over the last quarter. Models learn the puzzles abruptly, at a step that
    depends on the seed; a rate that decays from the start (cosine) may be too low by then.
    """
    return min(1.0, 4 * (steps - step) / steps)


def _set_learning_rates(optimizers: Sequence[torch.optim.Optimizer], share: float) -> None:
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["peak_lr"] * share
