"""Groups for teachers to score, and their scores by plain transformers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import ray
import torch
from transformers import AutoModelForCausalLM

from actors.teacher.client import TeacherClient
from rlad.contracts import RolloutGroup, TeacherScores, TeacherSupport

# The teacher's embedding of this token is NaN, which gives NaN scores without a fault.
POISON = 28


def make_group(
    seed: int, *, prompt_tokens: int = 12, lengths: list[int] | None = None, temperature: float = 1.0
) -> RolloutGroup:
    random = np.random.default_rng(seed)
    lengths = [3, 41, 0, 1, 88, 17] if lengths is None else lengths
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    num_tokens = int(offsets[-1])
    return RolloutGroup(
        uid=f"d:0:{seed}",
        attempt=seed % 3,
        prompt_id=str(seed),
        task="t",
        answer="T",
        temperature=temperature,
        prompt_ids=random.integers(2, POISON, prompt_tokens, dtype=np.int32),
        response_ids=random.integers(2, POISON, num_tokens, dtype=np.int32),
        response_offsets=offsets,
        behaviour_logprobs=np.zeros(num_tokens, np.float32),
        policy_versions=np.zeros(num_tokens, np.int32),
        finish_reasons=np.zeros(len(lengths), np.uint8),
    )


async def score(
    client: TeacherClient, group: RolloutGroup, support: TeacherSupport = None, prompt_ids: np.ndarray | None = None
) -> TeacherScores:
    scores_ref = await client.score(
        ray.put(group.to_columns()), num_tokens=group.num_tokens, support=support, prompt_ids=prompt_ids
    )
    scores = TeacherScores.from_columns(await scores_ref)
    assert (scores.uid, scores.attempt, scores.teacher) == (group.uid, group.attempt, client.teacher)
    return scores


def plain_logprobs(model_path: Path, group: RolloutGroup) -> np.ndarray:
    """Return the log-probabilities of the sampled tokens, float64 [N]."""
    return plain_distributions(model_path, group)[np.arange(group.num_tokens), group.response_ids]


def plain_distributions(model_path: Path, group: RolloutGroup) -> np.ndarray:
    """Return log-probabilities of the whole vocabulary, float64 [N, V], by one unpadded forward pass per response."""
    causal_lm = AutoModelForCausalLM.from_pretrained(model_path, dtype=torch.float32)
    rows = [np.empty((0, causal_lm.config.vocab_size))]
    for index in range(group.num_responses):
        ids = torch.from_numpy(
            np.concatenate([group.prompt_ids, group.response_ids[group.response(index)]]).astype(np.int64)
        )
        with torch.no_grad():
            logprobs = torch.log_softmax(causal_lm(ids[None]).logits[0].double() / group.temperature, dim=-1)
        rows.append(logprobs[len(group.prompt_ids) - 1 : -1].numpy())
    return np.concatenate(rows)


def assert_support_is_exact(scores: TeacherScores, group: RolloutGroup, model: Path, size: int) -> np.ndarray:
    """Check ids and log-probabilities of a support, and return the expected tails, float64 [N]."""
    assert scores.support_size == size
    rows = plain_distributions(model, group)
    ids, logprobs = (column.reshape(-1, size) for column in (scores.support_ids, scores.support_logprobs))
    np.testing.assert_array_equal(np.sort(ids), np.sort(np.argsort(rows)[:, rows.shape[1] - size :]))
    np.testing.assert_allclose(logprobs, np.take_along_axis(rows, ids, 1), atol=1e-5, rtol=0)
    np.put_along_axis(rows, ids, -np.inf, 1)
    return np.logaddexp.reduce(rows, axis=1)
