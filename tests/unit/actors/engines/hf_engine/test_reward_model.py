"""Reward model engine, compared with plain transformers one sequence at a time."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification

from actors.engines.hf_engine.reward_model import RewardModelEngine
from rlad.errors import ConfigError, EngineError
from rlad.verifiers import RewardModelVerifierConfig, build_verifier


def config_of(path: Path, **settings: Any) -> RewardModelVerifierConfig:
    return RewardModelVerifierConfig(name="reward_model", path=str(path), dtype="float32", **settings)


def group(response_lengths: list[int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    offsets = np.concatenate([[0], np.cumsum(response_lengths)]).astype(np.int64)
    return random.integers(2, 28, 7, dtype=np.int32), random.integers(2, 28, offsets[-1], dtype=np.int32), offsets


@pytest.mark.parametrize("token_budget", [1, 30, 8192])
def test_scores_match_plain_transformers(make_reward_model: Callable[..., Path], token_budget: int) -> None:
    path = make_reward_model()
    prompt, responses, offsets = group([5, 0, 17, 1, 40])
    model = AutoModelForSequenceClassification.from_pretrained(path, dtype=torch.float32)
    expected = []
    for response in np.split(responses, offsets[1:-1]):
        ids = torch.from_numpy(np.concatenate([prompt, response]).astype(np.int64))
        with torch.no_grad():
            expected.append(model(ids[None]).logits.item())
    scores = RewardModelEngine(config_of(path, token_budget=token_budget)).score(prompt, responses, offsets)
    assert scores.dtype == np.float32
    assert np.std(expected) > 0.05  # different scores, so that exchanged ones are detected
    np.testing.assert_allclose(scores, expected, atol=1e-5)


def test_models_without_a_trained_scalar_head_are_refused(
    make_reward_model: Callable[..., Path], make_model: Callable[..., Path], tmp_path: Path
) -> None:
    with pytest.raises(EngineError, match=r"is not a trained reward model: its checkpoint lacks score\.weight"):
        RewardModelEngine(config_of(make_model()))
    with pytest.raises(EngineError, match="one linear output .*; got a Qwen3ForSequenceClassification with 2 labels"):
        RewardModelEngine(config_of(make_reward_model(labels=2)))
    with pytest.raises(EngineError, match="cannot load a sequence-classification model from"):
        RewardModelEngine(config_of(tmp_path))


def test_sequence_beyond_the_context_is_refused(make_reward_model: Callable[..., Path]) -> None:
    with pytest.raises(EngineError, match="has 517 tokens; the context of the reward model is 512"):
        RewardModelEngine(config_of(make_reward_model())).score(*group([510]))


def test_reward_is_the_scaled_score_or_its_logistic_function() -> None:
    scores = np.array([-1000.0, 0.0, np.log(3.0), 1000.0], np.float32)
    plain = config_of(Path("x"), scale=0.5)
    np.testing.assert_allclose(plain.rewards(scores), [-500, 0, np.log(3) / 2, 500], rtol=1e-6)
    logistic = config_of(Path("x"), transform="sigmoid", scale=2.0)
    np.testing.assert_allclose(logistic.rewards(scores), [0, 1, 1.5, 2], rtol=1e-6)


def test_reward_model_cannot_run_in_a_judge() -> None:
    with pytest.raises(ConfigError, match="cannot run in a verifier process"):
        build_verifier({"name": "reward_model", "path": "x"})
