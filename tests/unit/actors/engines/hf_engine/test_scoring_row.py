"""Scoring rows: a prompt is stored once, and precedes each of its responses in attention."""

from __future__ import annotations

import numpy as np
import torch

from actors.engines.hf_engine.packed_attention import PackedLayout, packed_attention
from actors.engines.hf_engine.scoring_row import ScoringRow, scoring_row


def ids(*tokens: int) -> np.ndarray:
    return np.array(tokens, np.int32)


def shared_row() -> ScoringRow:
    """Return a row with prompt 10 11 12 and responses of 3 and 1 tokens, and prompt 20 with a response of 2 tokens."""
    return scoring_row([(ids(10, 11, 12), [ids(1, 2, 3), ids(4)]), (ids(20), [ids(5, 6)])])


def test_row_has_each_prompt_once_and_omits_the_last_token_of_a_response() -> None:
    row = shared_row()
    assert row.token_ids.tolist() == [10, 11, 12, 1, 2, 20, 5]
    assert row.position_ids.tolist() == [0, 1, 2, 3, 4, 0, 1]


def test_response_token_is_predicted_by_the_preceding_token() -> None:
    row = shared_row()
    assert row.target_ids.tolist() == [1, 2, 3, 4, 5, 6]
    assert row.token_ids[row.predicting].tolist() == [12, 1, 2, 12, 20, 5]


def test_sequences_in_attention_start_with_the_prompt() -> None:
    row = shared_row()
    assert row.sources is not None
    sequences = np.split(row.token_ids[row.sources], row.sequence_offsets[1:-1])
    assert [sequence.tolist() for sequence in sequences] == [[10, 11, 12, 1, 2], [10, 11, 12], [20, 5]]
    assert row.sources[row.places].tolist() == list(range(7))


def test_row_without_a_shared_prompt_equals_its_sequences() -> None:
    row = scoring_row([(ids(10, 11), [ids(1, 2)]), (ids(10, 11), [ids(3)])])
    assert (row.sources, row.places) == (None, None)
    assert row.token_ids.tolist() == [10, 11, 1, 10, 11]
    assert row.sequence_offsets.tolist() == [0, 3, 5]


def test_attention_over_shared_tokens_matches_whole_sequences() -> None:
    """Compares values and gradients. The gradient of a shared token is the sum over its sequences."""
    torch.manual_seed(0)
    row, heads, head_size = shared_row(), 2, 4
    size = len(row.token_ids)
    states = [torch.randn(1, heads, size, head_size, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    cotangent = torch.randn(1, size, heads, head_size, dtype=torch.float64)
    layout = PackedLayout.from_offsets(
        row.sequence_offsets, torch.device("cpu"), sources=row.sources, places=row.places
    )
    shared, _ = packed_attention(torch.nn.Module(), *states, None, packed_layout=layout)
    gradients = torch.autograd.grad(shared, states, cotangent)

    mask = torch.full((size, size), -torch.inf, dtype=torch.float64)
    for position, seen in enumerate([[0], [0, 1], [0, 1, 2], [0, 1, 2, 3], [0, 1, 2, 3, 4], [5], [5, 6]]):
        mask[position, seen] = 0
    query, key, value = states
    expected = ((query @ key.transpose(2, 3) / head_size**0.5 + mask).softmax(dim=-1) @ value).transpose(1, 2)
    torch.testing.assert_close(shared, expected, rtol=1e-12, atol=1e-12)
    for found, reference in zip(gradients, torch.autograd.grad(expected, states, cotangent), strict=True):
        torch.testing.assert_close(found, reference, rtol=1e-12, atol=1e-12)
