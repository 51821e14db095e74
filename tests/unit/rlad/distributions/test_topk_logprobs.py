"""The most likely tokens and the tail equal those of a dense log-softmax in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from rlad.distributions.topk_logprobs import selected_and_top_logprobs
from rlad.errors import ContractError

TOKENS, HIDDEN, VOCABULARY = 13, 8, 37


def inputs(dtype: torch.dtype = torch.float32, scale: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(TOKENS, HIDDEN, generator=generator) * scale
    weight = torch.randn(VOCABULARY, HIDDEN, generator=generator)
    return hidden.to(dtype), weight.to(dtype), torch.randint(VOCABULARY, (TOKENS,), generator=generator)


def exact(hidden: Tensor, weight: Tensor, temperature: float) -> np.ndarray:
    return torch.log_softmax(hidden.double() @ weight.double().t() / temperature, dim=1).numpy()


@pytest.mark.parametrize("chunk_tokens", [1, 5, 1024])
@pytest.mark.parametrize("support_size", [1, 4, VOCABULARY - 1, VOCABULARY])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_equals_a_dense_log_softmax(dtype: torch.dtype, support_size: int, chunk_tokens: int) -> None:
    hidden, weight, targets = inputs(dtype)
    found = selected_and_top_logprobs(
        hidden, weight, targets, support_size=support_size, temperature=0.6, chunk_tokens=chunk_tokens
    )
    expected = exact(hidden, weight, 0.6)
    np.testing.assert_allclose(found.selected, expected[np.arange(TOKENS), targets], atol=1e-5)
    for row, ids, logprobs, tail in zip(expected, *(column.numpy() for column in found[1:]), strict=True):
        assert set(ids.tolist()) == set(np.argsort(row)[VOCABULARY - support_size :].tolist())
        np.testing.assert_allclose(logprobs, row[ids], atol=1e-5)
        rest = np.delete(row, ids)
        assert tail == pytest.approx(float(np.logaddexp.reduce(rest)) if len(rest) else -math.inf, abs=1e-5)


def test_tail_is_exact_where_one_minus_the_support_cancels() -> None:
    # Softmax of (40, 0, 0): the mass outside the first token is 2 exp(-40), about 8.5e-18. In float32, and in float64,
    # 1 minus the support is 0.
    weight = torch.tensor([[40.0], [0.0], [0.0]])
    found = selected_and_top_logprobs(torch.ones(1, 1), weight, torch.tensor([1]), support_size=1)
    assert found.tail_logprobs.item() == pytest.approx(math.log(2) - 40, abs=1e-5)
    assert found.selected.item() == pytest.approx(-40, abs=1e-5)


@pytest.mark.parametrize("support_size", [3, VOCABULARY])
def test_nan_stays_in_its_token(support_size: int) -> None:
    hidden, weight, targets = inputs()
    hidden[4] = math.nan
    found = selected_and_top_logprobs(hidden, weight, targets, support_size=support_size)
    for column in (found.selected, found.support_logprobs[:, 0], found.tail_logprobs):
        assert torch.isnan(column).nonzero().flatten().tolist() == [4]
    assert ((found.support_ids >= 0) & (found.support_ids < VOCABULARY)).all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"support_size": 0}, "within 1 and the vocabulary size 37, got 0"),
        ({"support_size": 38}, "within 1 and the vocabulary size 37, got 38"),
        ({"support_size": 1, "temperature": 0.0}, "must be positive, got 0.0 and 1024"),
        ({"support_size": 1, "chunk_tokens": 0}, "must be positive, got 1.0 and 0"),
    ],
)
def test_invalid_arguments_are_refused(settings: dict[str, float], message: str) -> None:
    with pytest.raises(ContractError, match=message):
        selected_and_top_logprobs(*inputs(), **settings)
