"""Transformers scorer, compared with one unpadded forward pass per sequence."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from actors.engines.hf_engine.scorer import TransformersScorer
from rlad.config import TeacherConfig
from rlad.errors import EngineError

Group = tuple[np.ndarray, np.ndarray, np.ndarray]
TOKENS = (2, 28)  # ids of the tokenizer's plain symbols


def make_group(prompt_tokens: int, response_lengths: list[int], seed: int) -> Group:
    random = np.random.default_rng(seed)
    offsets = np.concatenate([[0], np.cumsum(response_lengths)]).astype(np.int64)
    return (
        random.integers(*TOKENS, prompt_tokens, dtype=np.int32),
        random.integers(*TOKENS, offsets[-1], dtype=np.int32),
        offsets,
    )


# Empty and one-token responses, a one-token prompt, and lengths that no token budget divides.
GROUPS = [
    make_group(9, [5, 0, 17, 1], 0),
    make_group(1, [1, 30], 1),
    make_group(23, [0, 0], 2),
    make_group(4, [40, 3, 12], 3),
]


def plain_logprobs(model_path: Path, group: Group, temperature: float) -> np.ndarray:
    """Return the log-probabilities of the sampled tokens, [N]."""
    return plain_distributions(model_path, group, temperature)[np.arange(len(group[1])), group[1]]


def plain_distributions(model_path: Path, group: Group, temperature: float) -> np.ndarray:
    """Return full log-softmaxes from one unpadded forward pass per response, float64 [N, V]."""
    model = AutoModelForCausalLM.from_pretrained(model_path, dtype=torch.float32)
    prompt, responses, offsets = group
    rows = []
    for response in np.split(responses, offsets[1:-1]):
        ids = torch.from_numpy(np.concatenate([prompt, response]).astype(np.int64))
        with torch.no_grad():
            logprobs = torch.log_softmax(model(ids[None]).logits[0].double() / temperature, dim=-1)
        rows.append(logprobs[len(prompt) - 1 : -1].numpy())
    return np.concatenate(rows)


@asynccontextmanager
async def open_scorer(model_path: Path, token_budget: int = 8192) -> AsyncIterator[TransformersScorer]:
    scorer = TransformersScorer(
        TeacherConfig(path=str(model_path), dtype="float32", engine="transformers", token_budget=token_budget)
    )
    try:
        yield scorer
    finally:
        scorer.close()


@pytest.mark.parametrize("token_budget", [1, 40, 64, 8192])
@pytest.mark.parametrize("tied", [True, False])
async def test_scores_do_not_depend_on_how_rows_are_cut(
    make_model: Callable[..., Path], token_budget: int, tied: bool
) -> None:
    model = make_model(tied=tied)
    async with open_scorer(model, token_budget) as scorer:
        scores = await asyncio.gather(*(scorer.score(*group, 1.0) for group in GROUPS))
    for group, scored in zip(GROUPS, scores, strict=True):
        assert scored.logprobs.dtype == np.float32
        np.testing.assert_allclose(scored.logprobs, plain_logprobs(model, group, 1.0), atol=1e-5, rtol=0)


async def test_each_group_is_scored_at_its_own_temperature(make_model: Callable[..., Path]) -> None:
    model, temperatures = make_model(), [1.0, 0.6, 1.0, 1.7]
    async with open_scorer(model) as scorer:
        scores = await asyncio.gather(*(scorer.score(*group, t) for group, t in zip(GROUPS, temperatures, strict=True)))
    for group, temperature, scored in zip(GROUPS, temperatures, scores, strict=True):
        np.testing.assert_allclose(scored.logprobs, plain_logprobs(model, group, temperature), atol=1e-5, rtol=0)


@pytest.mark.parametrize("token_budget", [40, 8192])
async def test_each_group_is_scored_with_its_own_support_size(
    make_model: Callable[..., Path], token_budget: int
) -> None:
    model, supports = make_model(), [None, 5, 1, "full", 5]
    async with open_scorer(model, token_budget) as scorer:
        groups = [*GROUPS, GROUPS[0]]
        scores = await asyncio.gather(
            *(scorer.score(*group, 0.7, support) for group, support in zip(groups, supports, strict=True))
        )
    for group, scored, size in zip(groups, scores, [0, 5, 1, 30, 5], strict=True):
        assert scored.support_size == size
        np.testing.assert_allclose(scored.logprobs, plain_logprobs(model, group, 0.7), atol=1e-5, rtol=0)
        if scored.support_ids is None:
            continue
        rows = plain_distributions(model, group, 0.7)
        np.testing.assert_array_equal(np.sort(scored.support_ids), np.sort(np.argsort(rows)[:, rows.shape[1] - size :]))
        np.testing.assert_allclose(
            scored.support_logprobs, np.take_along_axis(rows, scored.support_ids, 1), atol=1e-5, rtol=0
        )
        np.put_along_axis(rows, scored.support_ids, -np.inf, 1)
        np.testing.assert_allclose(scored.tail_logprobs, np.logaddexp.reduce(rows, axis=1), atol=1e-5, rtol=0)


async def test_support_larger_than_the_vocabulary_is_refused(make_model: Callable[..., Path]) -> None:
    async with open_scorer(make_model()) as scorer:
        with pytest.raises(EngineError, match="from 1 to 30, the teacher's vocabulary size; got 31"):
            await scorer.score(*GROUPS[0], 1.0, 31)


async def test_nan_of_the_model_is_kept_and_confined_to_its_sequence(
    make_model: Callable[..., Path], tmp_path: Path
) -> None:
    poisoned = 7
    model = AutoModelForCausalLM.from_pretrained(make_model(tied=False), dtype=torch.float32)
    with torch.no_grad():
        model.get_input_embeddings().weight[poisoned] = float("nan")
    model.save_pretrained(tmp_path)
    prompt, responses = np.array([3, 4], np.int32), np.array([5, poisoned, 6, 8, 9], np.int32)
    async with open_scorer(tmp_path) as scorer:
        scored = await scorer.score(prompt, responses, np.array([0, 3, 5], np.int64), 1.0)
    assert np.isnan(scored.logprobs[2])  # the attention kernel decides how many neighbours are NaN
    clean = (prompt, responses[3:], np.array([0, 2], np.int64))
    np.testing.assert_allclose(scored.logprobs[3:], plain_logprobs(tmp_path, clean, 1.0), atol=1e-5, rtol=0)


async def test_cancelled_group_is_dropped_and_others_are_scored(make_model: Callable[..., Path]) -> None:
    model = make_model()
    async with open_scorer(model, token_budget=1) as scorer:
        cancelled = [asyncio.create_task(scorer.score(*GROUPS[3], 1.0)) for _ in range(20)]
        await asyncio.sleep(0)  # lets the tasks enter the queue
        for task in cancelled[1:]:
            task.cancel()
        scored = await scorer.score(*GROUPS[0], 1.0)
        assert (await asyncio.gather(*cancelled, return_exceptions=True))[1].__class__ is asyncio.CancelledError
    np.testing.assert_allclose(scored.logprobs, plain_logprobs(model, GROUPS[0], 1.0), atol=1e-5, rtol=0)


async def test_failed_forward_pass_fails_its_group_and_not_the_engine(make_model: Callable[..., Path]) -> None:
    model = make_model()
    prompt, _, _ = GROUPS[0]
    async with open_scorer(model) as scorer:
        with pytest.raises(EngineError, match="forward pass failed: IndexError"):
            await scorer.score(prompt, np.array([3, 1000, 4], np.int32), np.array([0, 3], np.int64), 1.0)
        await scorer.check_health()
        np.testing.assert_allclose(
            (await scorer.score(*GROUPS[1], 1.0)).logprobs, plain_logprobs(model, GROUPS[1], 1.0), atol=1e-5, rtol=0
        )


async def test_response_beyond_the_teachers_context_is_refused(make_model: Callable[..., Path]) -> None:
    async with open_scorer(make_model()) as scorer:
        with pytest.raises(EngineError, match="has 513 tokens; the context of the teacher is 512"):
            await scorer.score(*make_group(3, [510], 0), 1.0)


async def test_closed_engine_is_unhealthy_and_refuses_groups(make_model: Callable[..., Path]) -> None:
    async with open_scorer(make_model()) as scorer:
        pass
    for call in (scorer.check_health(), scorer.score(*GROUPS[0], 1.0)):
        with pytest.raises(EngineError, match="has stopped"):
            await call


def test_missing_model_raises_an_engine_error(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="cannot load a causal language model from"):
        TransformersScorer(TeacherConfig(path=str(tmp_path), engine="transformers"))


async def test_prompt_of_a_group_is_processed_once(make_model: Callable[..., Path]) -> None:
    """A prompt of 9 and responses of 5, 17 and 1 tokens, each without its last token, make 9 + 4 + 16 + 0 tokens."""
    async with open_scorer(make_model()) as scorer:
        seen: list[int] = []
        scorer._model.get_input_embeddings().register_forward_pre_hook(
            lambda _, arguments: seen.append(arguments[0].numel())
        )
        await scorer.score(*GROUPS[0], 1.0)
    assert seen == [9 + 4 + 16]
