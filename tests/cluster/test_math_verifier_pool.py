"""Mathematical answers on a local Ray: rivals that lean on signal alarms score every one of them 0 there."""

from __future__ import annotations

import asyncio
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from actors.verifier.pool import VerifierPool
from rlad.config import VerifierPoolConfig
from rlad.contracts import FinishReason, Outcome, RolloutGroup
from rlad.verifiers import MathAnswerVerifierConfig


@pytest.fixture(scope="module")
def byte_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory whose tokenizer has a token for every byte, so that any text can be decoded."""
    directory = tmp_path_factory.mktemp("bytes")
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={character: index for index, character in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(directory / "tokenizer.json"))
    return directory


def group_of(tokenizer: Tokenizer, texts: list[str], answer: str, uid: str) -> RolloutGroup:
    ids = [tokenizer.encode(text).ids for text in texts]
    offsets = np.concatenate([[0], np.cumsum([len(each) for each in ids])]).astype(np.int64)
    return RolloutGroup(
        uid=uid,
        attempt=0,
        prompt_id=uid,
        task="math",
        answer=answer,
        temperature=1.0,
        prompt_ids=np.array([3], np.int32),
        response_ids=np.array(list(itertools.chain(*ids)), np.int32),
        response_offsets=offsets,
        behaviour_logprobs=np.zeros(int(offsets[-1]), np.float32),
        policy_versions=np.zeros(int(offsets[-1]), np.int32),
        finish_reasons=np.full(len(texts), FinishReason.STOP, np.uint8),
    )


async def test_all_real_answers_and_500_wrong_ones_are_judged_right_all_at_once(
    byte_tokenizer: Path, aime_responses: list[Any]
) -> None:
    tokenizer = Tokenizer.from_file(str(byte_tokenizer / "tokenizer.json"))
    # The deadline is the default one: a library that is loaded in a response's time would miss it on a busy machine.
    config = VerifierPoolConfig(workers=2, processes_per_worker=2, cpus_per_worker=0.5)
    pool = VerifierPool(
        config,
        {"math": MathAnswerVerifierConfig(name="math_answer")},
        tokenizer_path=str(byte_tokenizer),
        start_timeout_s=120,
    )
    by_answer: dict[str, list[Any]] = {}
    for response in aime_responses:
        by_answer.setdefault(response.answer, []).append(response)
    await pool.start()
    try:
        groups = [
            group_of(tokenizer, [each.text for each in responses], answer, f"d:0:{place}")
            for place, (answer, responses) in enumerate(by_answer.items())
        ]
        judged = await asyncio.gather(
            *(pool.verify(ray.put(group.to_columns()), num_tokens=group.num_tokens) for group in groups)
        )
    finally:
        await pool.close()
    for responses, each in zip(by_answer.values(), judged, strict=True):
        assert each.rewards == tuple(float(response.is_correct) for response in responses)
    num_right = sum(response.is_correct for response in aime_responses)
    assert pool.stats().outcomes == {Outcome.CORRECT: num_right, Outcome.WRONG: 500}
