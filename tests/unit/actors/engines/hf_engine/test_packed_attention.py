"""Packed attention, compared in values and gradients with separate forward passes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from actors.engines.hf_engine.packed_attention import PackedLayout, packed_attention
from actors.engines.zero_engine.policy_model import load_policy_model
from rlad.errors import EngineError

LENGTHS = (5, 1, 12, 5, 30)


def layout_of(lengths: tuple[int, ...]) -> PackedLayout:
    offsets = np.cumsum([0, *lengths]).astype(np.int32)
    return PackedLayout.from_offsets(offsets, torch.device("cpu"))


def dense_causal_attention(query: Tensor, key: Tensor, value: Tensor, scaling: float, window: int = 1000) -> Tensor:
    """Return masked attention, [H, L, D], from states of the same shape."""
    length = query.shape[1]
    scores = query @ key.transpose(1, 2) * scaling
    distance = torch.arange(length)[:, None] - torch.arange(length)
    scores = scores.masked_fill((distance < 0) | (distance >= window), -torch.inf)
    return scores.softmax(dim=-1) @ value


@pytest.mark.parametrize("key_value_heads", [4, 2, 1])
def test_attention_is_causal_within_sequences_and_absent_between_them(key_value_heads: int) -> None:
    torch.manual_seed(0)
    size, heads, head_size = sum(LENGTHS), 4, 8
    query = torch.randn(1, heads, size, head_size, dtype=torch.float64, requires_grad=True)
    key, value = (
        torch.randn(1, key_value_heads, size, head_size, dtype=torch.float64, requires_grad=True) for _ in range(2)
    )
    cotangent = torch.randn(1, size, heads, head_size, dtype=torch.float64)

    packed, _ = packed_attention(
        torch.nn.Module(), query, key, value, None, packed_layout=layout_of(LENGTHS), scaling=0.3
    )
    packed_gradients = torch.autograd.grad(packed, (query, key, value), cotangent)

    repeats = heads // key_value_heads
    parts = [
        dense_causal_attention(q[0], k[0].repeat_interleave(repeats, 0), v[0].repeat_interleave(repeats, 0), 0.3)
        for q, k, v in zip(*(states.split(LENGTHS, dim=2) for states in (query, key, value)), strict=True)
    ]
    separate = torch.cat(parts, dim=1).transpose(0, 1)[None]
    separate_gradients = torch.autograd.grad(separate, (query, key, value), cotangent)

    torch.testing.assert_close(packed, separate, rtol=1e-12, atol=1e-12)
    for found, expected in zip(packed_gradients, separate_gradients, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("window", [1, 5, 29, 30])
def test_token_attends_to_the_latest_tokens_of_its_sequence_within_the_window(window: int) -> None:
    torch.manual_seed(1)
    query, key, value = (torch.randn(1, 2, sum(LENGTHS), 8, dtype=torch.float64) for _ in range(3))
    packed, _ = packed_attention(
        torch.nn.Module(), query, key, value, None, packed_layout=layout_of(LENGTHS), scaling=0.3, sliding_window=window
    )
    parts = [
        dense_causal_attention(q[0], k[0], v[0], 0.3, window)
        for q, k, v in zip(*(states.split(LENGTHS, dim=2) for states in (query, key, value)), strict=True)
    ]
    torch.testing.assert_close(packed, torch.cat(parts, dim=1).transpose(0, 1)[None], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("model", ["Qwen3, tied", "Qwen3, untied", "Gemma 3"])
def test_packed_row_matches_logprobs_and_gradients_of_separate_forward_passes(
    make_model: Callable[..., Path], gemma3_model: Path, model: str
) -> None:
    """The longest sequence is longer than Gemma's window of 16 tokens."""
    path = str(gemma3_model if model == "Gemma 3" else make_model(tied=model == "Qwen3, tied"))
    generator = torch.Generator().manual_seed(1)
    sequences = [torch.randint(2, 28, (length,), generator=generator) for length in LENGTHS]
    cotangents = [torch.randn(length, generator=generator) for length in LENGTHS]

    policy = load_policy_model(
        path, dtype=torch.float32, temperature=0.7, chunk_tokens=16, activation_checkpointing=False
    )
    row = torch.cat(sequences)
    positions = torch.cat([torch.arange(length) for length in LENGTHS])
    # All positions are selected. The targets are arbitrary tokens.
    logprobs, *_ = policy(row, positions, layout_of(LENGTHS), torch.arange(len(row)), row.flip(0))
    logprobs.backward(torch.cat(cotangents))

    reference = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, attn_implementation="eager")
    expected = []
    for sequence, targets, cotangent in zip(sequences, row.flip(0).split(LENGTHS), cotangents, strict=True):
        scores = torch.log_softmax(reference(sequence[None]).logits[0] / 0.7, dim=-1).gather(1, targets[:, None])[:, 0]
        scores.backward(cotangent)
        expected.append(scores.detach())

    torch.testing.assert_close(logprobs.detach(), torch.cat(expected), rtol=0, atol=2e-5)
    gradients = dict(policy.causal_lm.named_parameters())
    assert gradients.keys() == dict(reference.named_parameters()).keys()
    for name, parameter in reference.named_parameters():
        assert parameter.grad is not None
        error = (gradients[name].grad - parameter.grad).norm() / parameter.grad.norm()
        assert error < 1e-5, f"{name}: relative error {error}"


def test_activation_checkpointing_does_not_change_the_gradient(make_model: Callable[..., Path]) -> None:
    row = torch.randint(2, 28, (sum(LENGTHS),), generator=torch.Generator().manual_seed(2))
    positions = torch.cat([torch.arange(length) for length in LENGTHS])
    gradients = []
    for activation_checkpointing in (False, True):
        model = load_policy_model(
            str(make_model()),
            dtype=torch.float32,
            temperature=1.0,
            chunk_tokens=16,
            activation_checkpointing=activation_checkpointing,
        )
        model(row, positions, layout_of(LENGTHS), torch.arange(len(row)), row)[0].sum().backward()
        gradients.append(
            torch.cat([parameter.grad.flatten() for parameter in model.parameters() if parameter.grad is not None])
        )
    assert torch.equal(*gradients)


@pytest.mark.parametrize(
    ("feature", "name"),
    [({"softcap": 30.0}, "soft-capped"), ({"dropout": 0.1}, "dropout")],
)
def test_unsupported_attention_is_refused(feature: dict[str, float], name: str) -> None:
    states = torch.randn(1, 2, sum(LENGTHS), 8)
    with pytest.raises(EngineError, match=name):
        packed_attention(torch.nn.Module(), states, states, states, None, packed_layout=layout_of(LENGTHS), **feature)
