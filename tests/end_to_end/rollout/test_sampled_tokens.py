"""Tokens of responses from a real engine: padding is never sampled, and responses end at every kind of stop."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import ray
import torch
from tokenizers import Tokenizer, decoders

from actors.rollout.pool import RolloutPool
from actors.weights.publish import publish
from rlad.config import RolloutConfig
from rlad.contracts import FinishReason, RolloutGroup
from rlad.tokenizers.stopping import SamplingTokens, StopRules

from .rollout_reference import EOS, load_policy, request, token_logprobs

pytestmark = [pytest.mark.engine, pytest.mark.timeout(900)]

ROWS, TOKENS = 64, 30
STOP_TOKEN, GENERATION_END, STOP_STRING = 7, 9, "ab"


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def padded(make_model: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a model whose 34 padding rows have more probability than its 30 tokens."""
    directory = tmp_path_factory.mktemp("padded")
    shutil.copytree(make_model(tied=False), directory, dirs_exist_ok=True)
    policy = load_policy(directory)
    policy.resize_token_embeddings(ROWS, mean_resizing=False)  # type: ignore[operator]
    with torch.no_grad():
        head = policy.lm_head.weight
        head[TOKENS:] = 1.2 * head[torch.arange(ROWS - TOKENS) % TOKENS]
    policy.save_pretrained(directory)  # type: ignore[operator]
    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    tokenizer.decoder = decoders.Fuse()  # without it the text would have a space between any two letters
    tokenizer.save(str(directory / "tokenizer.json"))
    ends = {"eos_token_id": [EOS, GENERATION_END], "pad_token_id": 0}
    (directory / "generation_config.json").write_text(json.dumps(ends))
    return directory


async def test_padding_is_never_sampled_and_every_stop_ends_a_response(cluster: None, padded: Path) -> None:
    policy, tokenizer = load_policy(padded), Tokenizer.from_file(str(padded / "tokenizer.json"))
    pool = RolloutPool(
        RolloutConfig(
            max_prompt_tokens=32, max_response_tokens=64, max_sequences=128, engine_args={"max_num_batched_tokens": 128}
        ),
        model_path=str(padded),
        dtype="float32",
        seed=0,
        start_timeout_s=400,
        run_id="test-sampled-tokens",
        tokens=SamplingTokens(
            stop=StopRules(token_ids=(EOS, STOP_TOKEN), strings=(STOP_STRING,)), vocabulary_size=TOKENS
        ),
    )
    await pool.start()
    try:
        before = await sampled(pool, num_responses=256)
        await pool.update_weights(publish(policy.state_dict(), 1))
        after = await sampled(pool, uid="g1", num_responses=64)
        short = await sampled(pool, uid="g2", num_responses=256, max_response_tokens=2)
    finally:
        await pool.close()
    with torch.no_grad():
        policy.lm_head.weight = torch.nn.Parameter(policy.lm_head.weight[:TOKENS])
    for group in (before, after, short):
        assert group.response_ids.max() < TOKENS
        # Log-probabilities are those of the distribution over the tokens, without the padding.
        assert np.abs(token_logprobs(policy, group) - group.behaviour_logprobs).max() <= 1e-4
        assert len(group.policy_versions) == group.num_tokens
    assert set(after.policy_versions.tolist()) == {1}
    assert ends_of(before, tokenizer) >= {"1", str(STOP_TOKEN), str(GENERATION_END), STOP_STRING}
    # A stop that comes with the last token of the budget is a stop.
    ends_of(short, tokenizer)
    assert ((short.response_lengths == 2) & ~short.is_truncated).any()


async def sampled(pool: RolloutPool, **changes: object) -> RolloutGroup:
    return RolloutGroup.from_columns(await (await pool.sample(request(**changes))).columns)


def ends_of(group: RolloutGroup, tokenizer: Tokenizer) -> set[str]:
    """Return what ended the responses, after checking that each of them ended at its first stop."""
    found = set()
    for index in range(group.num_responses):
        ids = group.response_ids[group.response(index)].tolist()
        letters = [tokenizer.id_to_token(token) for token in ids]
        stops = [
            str(token) if token in (EOS, STOP_TOKEN, GENERATION_END) else STOP_STRING
            for before, (token, letter) in zip(["", *letters], zip(ids, letters, strict=True), strict=False)
            if token in (EOS, STOP_TOKEN, GENERATION_END) or before + letter == STOP_STRING
        ]
        assert len(stops) == (group.finish_reasons[index] == FinishReason.STOP), (letters, stops)
        if stops:
            assert ids[-1] in (EOS, STOP_TOKEN, GENERATION_END) or "".join(letters[-2:]) == STOP_STRING
            found |= set(stops)
    return found
