"""A teacher's replica scores responses behind the prompt that comes with the call, on a tiny model."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from actors.teacher.replica import Receipt, TeacherServer
from rlad.config import TeacherConfig
from rlad.contracts import Columns, RolloutGroup, TeacherScores
from rlad.data.chat import tokenizer_fingerprint
from rlad.errors import ContractError, ScoringRefusedError
from rlad.testing import make_group

GROUP = make_group([[4, 9, 5], [], [4, 9, 5], [7]], prompt=[3, 8, 6])
PRIVILEGED = np.array([11, 12, 13, 14, 3, 8, 6], np.int32)


@pytest.fixture
def model(make_model: Callable[..., Path]) -> Path:
    return make_model()


@pytest.fixture
def server(model: Path) -> TeacherServer:
    return TeacherServer(TeacherConfig(path=str(model), dtype="float32", engine="transformers"))


async def scored(server: TeacherServer, model: Path, prompt_ids: np.ndarray | None) -> tuple[TeacherScores, Receipt]:
    columns: asyncio.Future[Columns] = asyncio.get_running_loop().create_future()
    columns.set_result(GROUP.to_columns())
    found = [item async for item in server.score([columns], tokenizer_fingerprint(model), prompt_ids=prompt_ids)]
    assert isinstance(found[1], Receipt)
    return TeacherScores.from_columns(found[0]), found[1]


def expected(model: Path, prompt: np.ndarray) -> np.ndarray:
    """Return the log-probabilities of the group's tokens from one forward pass per response."""
    policy = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    found = []
    for index in range(GROUP.num_responses):
        response = GROUP.response_ids[GROUP.response(index)]
        ids = torch.from_numpy(np.concatenate([prompt, response]).astype(np.int64))
        with torch.no_grad():
            logprobs = policy(ids[None]).logits[0].log_softmax(dim=-1)
        found += [logprobs[len(prompt) - 1 + t, token].item() for t, token in enumerate(response)]
    return np.array(found, np.float32)


async def test_tokens_are_scored_behind_the_given_prompt_and_the_cache_keeps_prompts_apart(
    server: TeacherServer, model: Path
) -> None:
    """Positions, packing and cache follow the prompt of the call; the columns stay those of the group."""
    plain, _ = await scored(server, model, None)
    privileged, receipt = await scored(server, model, PRIVILEGED)
    np.testing.assert_allclose(plain.logprobs, expected(model, GROUP.prompt_ids), atol=1e-5)
    np.testing.assert_allclose(privileged.logprobs, expected(model, PRIVILEGED), atol=1e-5)
    assert np.abs(plain.logprobs - privileged.logprobs).max() > 1e-3
    assert (privileged.uid, receipt.num_tokens) == (GROUP.uid, GROUP.num_tokens)
    stats = await server.stats()
    assert (stats.cache_hits, stats.cache_misses) == (0, 4)  # two different responses behind each of two prompts
    again, _ = await scored(server, model, PRIVILEGED)
    assert again.logprobs.tolist() == privileged.logprobs.tolist()
    assert (await server.stats()).cache_hits == 2


async def test_unknown_tokens_of_a_privileged_prompt_are_refused(server: TeacherServer, model: Path) -> None:
    with pytest.raises(ScoringRefusedError, match="token ids from 3 to 1000"):
        await scored(server, model, np.array([3, 1000], np.int32))


def test_group_behind_another_prompt_is_validated_and_shares_its_tokens() -> None:
    other = GROUP.behind(PRIVILEGED)
    assert isinstance(other, RolloutGroup)
    assert other.prompt_ids is PRIVILEGED
    assert other.response_ids is GROUP.response_ids
    assert GROUP.behind(None) is GROUP
    with pytest.raises(ContractError, match="the prompt is empty"):
        GROUP.behind(np.array([], np.int32))
