"""Tests of routing groups to their task's reward model or to the verifiers, on a local Ray."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import pytest
import ray
from transformers import AutoTokenizer

from actors.engines.hf_engine.reward_model import RewardModelEngine
from actors.verifier.reward_pool import VerdictPools
from pipelines.training.deadlines import together
from rlad.config import VerifierPoolConfig
from rlad.contracts import Outcome, RolloutGroup
from rlad.errors import EngineError, PoolExhaustedError
from rlad.testing import make_group
from rlad.verifiers import KnightsKnavesVerifierConfig, RewardModelVerifierConfig


def group_of(tokenizer_path: Path, texts: list[str], *, task: str, truncated: tuple[int, ...] = ()) -> RolloutGroup:
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_path)
    responses = [tokenizer(text)["input_ids"] for text in texts]
    return make_group(responses, prompt=[3, 4], uid="d:0:0", attempt=1, task=task, answer="TF", truncated=truncated)


@asynccontextmanager
async def open_pools(student: Path, model: RewardModelVerifierConfig) -> AsyncIterator[VerdictPools]:
    verifiers = {"puzzle": KnightsKnavesVerifierConfig(name="knights_knaves", form="compact"), "style": model}
    pools = VerdictPools(
        VerifierPoolConfig(cpus_per_worker=0.5), verifiers, tokenizer_path=str(student), start_timeout_s=120
    )
    try:
        await together(*(pool.start() for pool in pools.pools))
        yield pools
    finally:
        for pool in pools.pools:
            await pool.close()


async def test_task_selects_the_reward_model_or_the_verifiers(
    make_model: Callable[..., Path], make_reward_model: Callable[..., Path]
) -> None:
    student, texts = make_model(), ["TF=TF$", "TF=FT$", "ab", "TT", ""]
    groups = {task: group_of(student, texts, task=task, truncated=(3,)) for task in ("puzzle", "style")}
    model = RewardModelVerifierConfig(
        name="reward_model", path=str(make_reward_model()), dtype="float32", transform="sigmoid", cpus_per_worker=0.5
    )
    style = groups["style"]
    expected = 1 / (
        1 + np.exp(-RewardModelEngine(model).score(style.prompt_ids, style.response_ids, style.response_offsets))
    )
    model = model.model_copy(update={"correct_from": float(np.median(expected))})
    async with open_pools(student, model) as pools:
        judged = {
            task: await pools.verify(
                ray.put(group.to_columns()), task=task, num_tokens=group.num_tokens, with_texts=True
            )
            for task, group in groups.items()
        }
        verdicts = judged["style"].verdicts
        stats = pools.stats()
    assert judged["puzzle"].rewards == (1.0, 0.0, 0.0, 0.0, 0.0)
    np.testing.assert_allclose(verdicts.rewards, expected, atol=1e-6)
    assert judged["style"].rewards == tuple(verdicts.rewards.tolist())
    assert judged["style"].texts == (
        "T F = T F",
        "T F = F T",
        "a b",
        "T T",
        "",
    )  # the tokenizer decodes with spaces between the tokens
    outcomes = [Outcome.CORRECT if reward >= np.median(expected) else Outcome.WRONG for reward in verdicts.rewards]
    outcomes[3] = Outcome.UNPARSEABLE
    assert list(judged["style"].outcomes) == verdicts.outcomes.tolist() == outcomes
    assert (verdicts.uid, verdicts.attempt) == ("d:0:0", 1)
    assert (stats.num_groups, stats.processes, sum(stats.outcomes.values())) == (2, 2, 10)


async def test_group_that_exceeds_the_context_of_the_reward_model_is_an_error(
    make_model: Callable[..., Path], make_reward_model: Callable[..., Path]
) -> None:
    model = RewardModelVerifierConfig(
        name="reward_model", path=str(make_reward_model()), dtype="float32", cpus_per_worker=0.5
    )
    async with open_pools(make_model(), model) as pools:
        group = group_of(make_model(), ["T" * 600], task="style")
        with pytest.raises(EngineError, match="the context of the reward model is 512"):
            await pools.verify(ray.put(group.to_columns()), task="style", num_tokens=600)


async def test_reward_model_with_another_vocabulary_does_not_start(
    make_model: Callable[..., Path], tmp_path: Path, make_reward_model: Callable[..., Path]
) -> None:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel({"a": 0, "b": 1}, unk_token="a"))
    ).save_pretrained(tmp_path)
    model = RewardModelVerifierConfig(
        name="reward_model", path=str(make_reward_model()), dtype="float32", cpus_per_worker=0.5
    )
    with pytest.raises(PoolExhaustedError, match="VocabularyMismatchError: reward model"):
        async with open_pools(tmp_path, model):
            pass
