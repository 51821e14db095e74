"""Training and evaluation of starter models."""

from __future__ import annotations

import pytest
import torch

from pipelines.starters.batches import IGNORED, endless_batches, make_examples
from pipelines.starters.sampling import measure_accuracy, sample_responses
from pipelines.starters.tokenizer import END, END_ID, encode
from pipelines.starters.traces import longest_trace
from pipelines.starters.training import build_model, build_optimizers, share_of_peak, train, training_loss
from rlad.data.knights_knaves.compact import render_answer, render_prompt
from rlad.data.knights_knaves.generate import generate_puzzles
from rlad.data.knights_knaves.puzzle import Puzzle
from rlad.starters.recipes import RoleRecipe, StarterArchitecture, TrainingPhase

SHAPE = StarterArchitecture(hidden_size=32, num_layers=2, num_heads=2, feed_forward=64)
MUON = TrainingPhase(traces="correct", steps=12, learning_rate=1e-2, matrix_learning_rate=0.02)
ADAMW = TrainingPhase(traces="careless", steps=3, learning_rate=1e-3, matrix_learning_rate=None)
PUZZLES = generate_puzzles(people={2: 0.5, 3: 0.5}, count=200, split="train", seed=0)


def _train(*phases: TrainingPhase) -> tuple[list[float], torch.nn.Module]:
    losses: list[float] = []
    model = build_model(SHAPE, seed=0)
    train(
        model,
        RoleRecipe(shape=SHAPE, phases=phases, seed=0),
        PUZZLES,
        tokens_per_step=512,
        on_step=lambda step, loss, _: losses.append(loss),
    )
    return losses, model


def test_few_steps_reduce_the_loss_far_below_guessing() -> None:
    losses, _ = _train(MUON)
    assert len(losses) == MUON.steps
    assert losses[0] > 3.0  # ln 29 = 3.4 is the loss of guessing
    assert losses[-1] < 2.0


def test_training_is_deterministic() -> None:
    (_, first), (_, second) = _train(MUON, ADAMW), _train(MUON, ADAMW)
    for one, other in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(one, other)


def test_loss_is_the_mean_over_response_tokens() -> None:
    """Compares a padded batch with single unpadded examples."""
    model = build_model(SHAPE, seed=1)
    examples = make_examples(PUZZLES[:8], "correct", seed=0)
    batch = next(endless_batches(examples, tokens_per_step=10_000, seed=0))
    total, count = 0.0, 0
    for example in examples:
        logprobs = model(input_ids=torch.tensor([example.token_ids])).logits[0].log_softmax(-1)
        for position in range(example.prompt_length, len(example.token_ids)):
            total -= logprobs[position - 1, example.token_ids[position]].item()
            count += 1
    assert int((batch.targets != IGNORED).sum()) == count
    assert training_loss(model, batch).item() == pytest.approx(total / count, rel=1e-5)


def test_learning_rate_is_constant_and_decays_over_the_last_quarter() -> None:
    assert [share_of_peak(step, 16) for step in (0, 8, 12, 13, 14, 15)] == [1.0, 1.0, 1.0, 0.75, 0.5, 0.25]


def test_muon_trains_matrices_and_adamw_other_parameters() -> None:
    model = build_model(SHAPE, seed=0)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    by_optimizer = {
        type(optimizer).__name__: {
            names[id(parameter)] for group in optimizer.param_groups for parameter in group["params"]
        }
        for optimizer in build_optimizers(model, MUON)
    }
    assert by_optimizer["AdamW"] | by_optimizer["Muon"] == set(names.values())
    assert not by_optimizer["AdamW"] & by_optimizer["Muon"]
    assert {"model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"} <= by_optimizer["AdamW"]
    assert len(by_optimizer["Muon"]) == SHAPE.num_layers * 7
    assert [type(optimizer).__name__ for optimizer in build_optimizers(model, ADAMW)] == ["AdamW"]


def _slow_greedy(model: torch.nn.Module, prompt: list[int], max_tokens: int) -> list[int]:
    """Greedy sampling of one prompt at a time, without a cache."""
    response: list[int] = []
    while len(response) < max_tokens and END_ID not in response:
        response.append(int(model(input_ids=torch.tensor([prompt + response])).logits[0, -1].argmax()))
    return response


def test_batched_greedy_sampling_equals_one_prompt_at_a_time_without_cache() -> None:
    _, model = _train(MUON)
    prompts = [encode(render_prompt(puzzle)) for puzzle in PUZZLES[:12]]
    assert len({len(prompt) for prompt in prompts}) > 1
    batched = sample_responses(model, prompts, temperature=0.0, max_tokens=25, generator=torch.Generator())
    assert batched == [_slow_greedy(model, prompt, 25) for prompt in prompts]


def test_sampled_tokens_follow_the_tempered_distribution() -> None:
    """Compares first tokens of many samples with the model's distribution at that temperature."""
    model = build_model(SHAPE, seed=2)
    prompt = encode(render_prompt(PUZZLES[0]))
    logits = model(input_ids=torch.tensor([prompt])).logits[0, -1]
    for temperature in (1.0, 0.5):
        samples = sample_responses(
            model, [prompt] * 4000, temperature=temperature, max_tokens=1, generator=torch.Generator().manual_seed(0)
        )
        frequencies = torch.bincount(torch.tensor(samples).squeeze(-1), minlength=len(logits)) / len(samples)
        torch.testing.assert_close(frequencies, (logits / temperature).softmax(-1), atol=0.02, rtol=0)


def test_accuracy_counts_finished_correct_answers_by_number_of_people() -> None:
    """Compares greedy accuracy with one prompt at a time and a plain comparison of the text after `=`."""
    puzzles = [puzzle for puzzle in PUZZLES if puzzle.num_people == 2][:16] + [
        puzzle for puzzle in PUZZLES if puzzle.num_people == 3
    ][:4]
    model = build_model(SHAPE, seed=0)
    phase = TrainingPhase(traces="correct", steps=80, learning_rate=1e-2, matrix_learning_rate=0.02)
    train(
        model,
        RoleRecipe(shape=SHAPE, phases=(phase,), seed=0),
        puzzles[:12],
        tokens_per_step=512,
        on_step=lambda *_: None,
    )

    def is_right(puzzle: Puzzle) -> bool:
        response = _slow_greedy(model, encode(render_prompt(puzzle)), longest_trace(puzzle.num_people))
        answer = encode("=" + render_answer(puzzle.solution) + END)
        return response[-len(answer) :] == answer

    right = [is_right(puzzle) for puzzle in puzzles]
    made: list[int] = []
    summary = measure_accuracy(model, puzzles, temperature=0.0, samples=1, seed=0, on_responses=made.append)
    assert 0 < sum(right) < len(puzzles)
    assert sum(made) == len(puzzles)
    assert summary.overall.mean == pytest.approx(sum(right) / 20)
    assert {group: row.mean for group, row in summary.groups.items()} == pytest.approx(
        {"2": sum(right[:16]) / 16, "3": sum(right[16:]) / 4}
    )
