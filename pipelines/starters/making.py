"""Training and evaluation of one starter model, and its export as a Hugging Face model directory."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

import torch
from transformers import Qwen3ForCausalLM
from transformers.utils.logging import disable_progress_bar

from pipelines.starters.progress import OnProgress, StarterProgress
from pipelines.starters.sampling import measure_accuracy
from pipelines.starters.tokenizer import build_tokenizer
from pipelines.starters.training import build_model, train
from rlad.data.knights_knaves.generate import generate_puzzles
from rlad.data.knights_knaves.puzzle import Puzzle
from rlad.evaluation.accuracy import EvaluationSummary
from rlad.starters.cache import StarterRecord
from rlad.starters.recipes import Role, StarterRecipe

# Temperature and responses per puzzle of each evaluation. pass@k is reported for the second.
SETTINGS: Mapping[str, tuple[float, int]] = {"greedy": (0.0, 1), "T=1": (1.0, 8), "T=0.6": (0.6, 2)}

_TRAINING_SEED, _EVALUATION_SEED = 0, 1


def training_puzzles(recipe: StarterRecipe) -> list[Puzzle]:
    """Return the training puzzles of all roles. Puzzles repeat if there are not enough distinct ones."""
    return generate_puzzles(people=recipe.people, count=recipe.training_puzzles, split="train", seed=_TRAINING_SEED)


def evaluation_puzzles(recipe: StarterRecipe) -> list[Puzzle]:
    """Return the evaluation puzzles of all roles, disjoint from the training puzzles."""
    return generate_puzzles(
        people=recipe.people, count=recipe.evaluation_puzzles, split="evaluation", seed=_EVALUATION_SEED
    )


def make_starter(recipe: StarterRecipe, role: Role, directory: Path, report: OnProgress) -> StarterRecord:
    """Train and evaluate a model on one thread, and write it to a new `directory` with its tokenizer and record."""
    torch.set_num_threads(1)
    disable_progress_bar()  # the bar of save_pretrained would disturb the caller's
    torch.use_deterministic_algorithms(True)
    start, cpu_start = time.monotonic(), time.process_time()
    own = recipe.of(role)
    model = build_model(own.shape, own.seed)
    tokens = 0

    def on_step(step: int, loss: float, batch_tokens: int) -> None:
        nonlocal tokens
        tokens += batch_tokens
        speed = tokens / (time.monotonic() - start)
        report(
            StarterProgress(
                role=role, stage="training", done=step, total=own.total_steps, loss=loss, tokens_per_s=speed
            )
        )

    report(StarterProgress(role=role, stage="training", done=0, total=own.total_steps))
    train(model, own, training_puzzles(recipe), tokens_per_step=recipe.tokens_per_step, on_step=on_step)
    train_seconds = time.monotonic() - start
    accuracies = _measure(model, recipe, role, report)
    model.save_pretrained(directory)
    build_tokenizer().save_pretrained(directory)
    record = StarterRecord(
        name=f"{recipe.name}/{role}",
        recipe=recipe.content(role),
        num_parameters=model.num_parameters(),
        accuracies=accuracies,
        training_tokens=tokens,
        train_seconds=round(train_seconds, 1),
        total_seconds=round(time.monotonic() - start, 1),
        cpu_seconds=round(time.process_time() - cpu_start, 1),
    )
    record.write(directory)
    return record


def _measure(
    model: Qwen3ForCausalLM, recipe: StarterRecipe, role: Role, report: OnProgress
) -> dict[str, EvaluationSummary]:
    puzzles = evaluation_puzzles(recipe)
    done, total = 0, len(puzzles) * sum(samples for _, samples in SETTINGS.values())

    def on_responses(count: int) -> None:
        nonlocal done
        done += count
        report(StarterProgress(role=role, stage="measuring", done=done, total=total))

    report(StarterProgress(role=role, stage="measuring", done=0, total=total))
    return {
        setting: measure_accuracy(
            model, puzzles, temperature=temperature, samples=samples, seed=0, on_responses=on_responses
        )
        for setting, (temperature, samples) in SETTINGS.items()
    }
