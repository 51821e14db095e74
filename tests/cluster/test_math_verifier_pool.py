"""Tests of mathematical answers in the verifier pool on a local Ray.

Verifiers that use signal alarms for their timeouts score every answer 0 in a Ray worker.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
import ray
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from actors.verifier.pool import VerifierPool
from rlad.config import VerifierPoolConfig
from rlad.contracts import Outcome, RolloutGroup
from rlad.testing import make_group
from rlad.verifiers import MathAnswerVerifierConfig


@pytest.fixture(scope="module")
def byte_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a directory whose tokenizer has a token for every byte, so that it can encode any text."""
    directory = tmp_path_factory.mktemp("bytes")
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={character: index for index, character in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(directory / "tokenizer.json"))
    return directory


def group_of(tokenizer: Tokenizer, texts: list[str], answer: str, uid: str) -> RolloutGroup:
    return make_group([tokenizer.encode(text).ids for text in texts], uid=uid, task="math", answer=answer)


async def test_real_answers_and_500_wrong_ones_are_judged_correctly_when_verified_concurrently(
    byte_tokenizer: Path, aime_responses: list[Any]
) -> None:
    tokenizer = Tokenizer.from_file(str(byte_tokenizer / "tokenizer.json"))
    # The default deadline would expire on a busy machine if a library were imported within a response's time.
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
            group_of(tokenizer, [response.text for response in responses], answer, f"d:0:{place}")
            for place, (answer, responses) in enumerate(by_answer.items())
        ]
        judged = await asyncio.gather(
            *(pool.verify(ray.put(group.to_columns()), num_tokens=group.num_tokens) for group in groups)
        )
    finally:
        await pool.close()
    for responses, verified in zip(by_answer.values(), judged, strict=True):
        assert verified.rewards == tuple(float(response.is_correct) for response in responses)
    num_right = sum(response.is_correct for response in aime_responses)
    assert pool.stats().outcomes == {Outcome.CORRECT: num_right, Outcome.WRONG: 500}
