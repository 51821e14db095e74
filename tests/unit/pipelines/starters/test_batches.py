"""Training batches: targets, padding, and separation from the evaluation puzzles."""

from __future__ import annotations

from itertools import islice

from pipelines.starters.batches import IGNORED, Batch, Example, endless_batches, make_examples
from pipelines.starters.making import evaluation_puzzles, training_puzzles
from pipelines.starters.tokenizer import PAD_ID, VOCABULARY, encode
from rlad.data.knights_knaves.compact import render_prompt
from rlad.data.knights_knaves.generate import generate_puzzles
from rlad.data.knights_knaves.puzzle import puzzle_from_statements
from rlad.starters.recipes import RECIPES

PUZZLES = generate_puzzles(people={2: 0.2, 3: 0.4, 4: 0.4}, count=500, split="train", seed=3)
SYMBOLS = list(VOCABULARY)


def _rows(batch: Batch) -> list[tuple[int, ...]]:
    """Return the examples of a batch without padding."""
    return [tuple(token for token in row if token != PAD_ID) for row in batch.token_ids.tolist()]


def test_targets_are_response_tokens_only() -> None:
    prompt, response = "A:b;B:A&B;?", "AB:AFxAb:ATBT&FF=TF$"
    (example,) = make_examples(
        [puzzle_from_statements([("lying", 1), ("and", ("telling-truth", 0), ("telling-truth", 1))])], "correct", seed=0
    )
    longer = Example(token_ids=encode(prompt + response + "$$"), prompt_length=len(prompt))
    batch = next(endless_batches([example, longer], tokens_per_step=1000, seed=0))

    row = batch.token_ids.tolist().index([*encode(prompt + response), PAD_ID, PAD_ID])
    targets = batch.targets[row].tolist()
    # The last prompt token predicts the first response token; the end has no target.
    assert targets == [IGNORED] * (len(prompt) - 1) + encode(response) + [IGNORED] * 3


def test_each_epoch_has_each_example_once_in_a_new_order() -> None:
    examples = make_examples(PUZZLES, "correct", seed=0)
    wanted = sorted(tuple(example.token_ids) for example in examples)
    batches = endless_batches(examples, tokens_per_step=1024, seed=0)
    epochs: list[list[tuple[int, ...]]] = []
    for _ in range(2):
        seen: list[tuple[int, ...]] = []
        while len(seen) < len(examples):
            seen += _rows(next(batches))
        epochs.append(seen)
    assert all(sorted(epoch) == wanted for epoch in epochs)
    assert epochs[0] != epochs[1]


def test_batches_respect_the_token_limit_with_little_padding() -> None:
    batches = list(islice(endless_batches(make_examples(PUZZLES, "correct", seed=0), tokens_per_step=2048, seed=0), 12))
    assert all(batch.token_ids.numel() <= 2048 for batch in batches)
    padding = sum(int((batch.token_ids == PAD_ID).sum()) for batch in batches) / sum(
        batch.token_ids.numel() for batch in batches
    )
    assert padding < 0.15


def test_example_longer_than_the_limit_has_its_own_batch() -> None:
    examples = make_examples(PUZZLES, "correct", seed=0)
    batches = islice(endless_batches(examples, tokens_per_step=30, seed=0), len(examples) // 2)
    assert all(batch.token_ids.numel() <= 30 or len(batch.token_ids) == 1 for batch in batches)


def test_careless_traces_are_well_formed_and_often_wrong() -> None:
    correct, careless = (make_examples(PUZZLES, traces, seed=0) for traces in ("correct", "careless"))
    texts = ["".join(SYMBOLS[token] for token in example.token_ids) for example in careless]
    right = sum(
        text.split("=")[-1] == "".join(SYMBOLS[token] for token in example.token_ids).split("=")[-1]
        for text, example in zip(texts, correct, strict=True)
    )
    assert all(text.endswith("$") for text in texts)
    assert 0.3 < right / len(PUZZLES) < 0.8


def test_evaluation_puzzles_are_not_trained_on() -> None:
    for recipe in RECIPES.values():
        trained, measured = (
            {render_prompt(puzzle) for puzzle in puzzles}
            for puzzles in (training_puzzles(recipe), evaluation_puzzles(recipe))
        )
        assert len(measured) == recipe.evaluation_puzzles
        assert not trained & measured
