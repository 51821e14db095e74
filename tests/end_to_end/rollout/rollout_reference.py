"""Requests for groups, and reference log-probabilities of sampled groups from plain transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import Qwen3ForCausalLM

from actors.messages import SampleRequest
from rlad.contracts import RolloutGroup

PROMPT = np.array([2, 18, 10, 19, 3, 18, 4, 20], np.int32)
EOS = 1


def request(**changes: Any) -> SampleRequest:
    fields: dict[str, Any] = {
        "uid": "set:0:0",
        "attempt": 0,
        "prompt_id": "p",
        "task": "knights_knaves",
        "answer": "TF",
        "prompt_ids": PROMPT,
        "num_responses": 8,
        "max_response_tokens": 64,
        "temperature": 1.0,
        "seed": None,
    }
    return SampleRequest(**(fields | changes))


def load_policy(directory: Path) -> torch.nn.Module:
    return Qwen3ForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()


def endless_prompt(policy: Any, length: int) -> np.ndarray:
    """Return a prompt that a policy continues greedily for `length` tokens without stopping."""
    for first in range(2, 30):
        prompt = np.array([first, 18, 10, 19], np.int32)
        continued = policy.generate(torch.tensor(prompt).long()[None], max_new_tokens=length, do_sample=False)
        if continued.shape[1] == len(prompt) + length:
            return prompt
    raise AssertionError("every greedy continuation of this random model stops; use another seed")


def token_logprobs(policy: torch.nn.Module, group: RolloutGroup, *, top_p: float = 1.0) -> np.ndarray:
    """Return the log-probability of every response token at the group's temperature, float64 [N].

    Runs one response at a time. The logits are in the policy's precision.
    """
    parts = []
    for index in range(group.num_responses):
        response = group.response_ids[group.response(index)]
        sequence = torch.tensor(np.concatenate([group.prompt_ids, response])).long()
        with torch.no_grad():
            logits = policy(sequence[None]).logits[0, len(group.prompt_ids) - 1 : -1].double() / group.temperature
        if top_p < 1:
            logits = _cut(logits, top_p)
        parts.append(logits.log_softmax(-1)[torch.arange(len(response)), torch.tensor(response).long()].numpy())
    return np.concatenate(parts)


def largest_gap(policy: torch.nn.Module, group: RolloutGroup, *, top_p: float = 1.0) -> float:
    """Return the largest difference between the log-probabilities of a group and those of a policy."""
    return float(np.abs(token_logprobs(policy, group, top_p=top_p) - group.behaviour_logprobs).max())


def _cut(logits: torch.Tensor, top_p: float) -> torch.Tensor:
    """Keep the smallest set of most likely tokens whose probability reaches `top_p`."""
    probabilities, order = logits.softmax(-1).sort(-1, descending=True)
    before = probabilities.cumsum(-1) - probabilities
    dropped = torch.zeros_like(logits, dtype=torch.bool).scatter(-1, order, before >= top_p)
    return logits.masked_fill(dropped, -torch.inf)
