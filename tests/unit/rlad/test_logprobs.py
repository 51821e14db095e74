"""Selected log-probabilities equal the dense computation; memory is bounded; ZeRO-3 weights are supported."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from rlad.errors import ContractError
from rlad.logprobs import selected_logprobs, token_statistics


def problem(
    tokens: int, *, hidden: int = 6, vocabulary: int = 11, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return hidden states, weight, targets and incoming gradient. Logits have a standard deviation of about 3."""
    generator = torch.Generator().manual_seed(tokens)
    states = torch.randn(tokens, hidden, generator=generator, dtype=torch.float64)
    weight = 3 * hidden**-0.5 * torch.randn(vocabulary, hidden, generator=generator, dtype=torch.float64)
    targets = torch.randint(vocabulary, (tokens,), generator=generator)
    incoming = torch.randn(tokens, generator=generator, dtype=torch.float64)
    return states.to(dtype).requires_grad_(), weight.to(dtype).requires_grad_(), targets, incoming


def dense_logprobs(hidden: Tensor, weight: Tensor, targets: Tensor, temperature: float) -> Tensor:
    return torch.log_softmax(hidden @ weight.T / temperature, dim=1).gather(1, targets[:, None])[:, 0]


def values_and_gradients(
    compute: Callable[[Tensor, Tensor], Tensor], hidden: Tensor, weight: Tensor, incoming: Tensor
) -> list[Tensor]:
    logprobs = compute(hidden, weight)
    return [logprobs.detach(), *torch.autograd.grad(logprobs, [hidden, weight], incoming.to(logprobs.dtype))]


@pytest.mark.parametrize("temperature", [1.0, 0.6, 1.7])
@pytest.mark.parametrize(("tokens", "chunk_tokens"), [(1, 1), (7, 1), (7, 3), (7, 7), (8, 4), (5, 1024)])
def test_equals_the_dense_computation(tokens: int, chunk_tokens: int, temperature: float) -> None:
    hidden, weight, targets, incoming = problem(tokens)
    came = values_and_gradients(
        lambda h, w: selected_logprobs(h, w, targets, temperature=temperature, chunk_tokens=chunk_tokens),
        hidden,
        weight,
        incoming,
    )
    expected = values_and_gradients(lambda h, w: dense_logprobs(h, w, targets, temperature), hidden, weight, incoming)
    for one, other in zip(came, expected, strict=True):
        assert one.dtype == torch.float64
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-13)


def test_gradient_is_the_finite_difference() -> None:
    hidden, weight, targets, _ = problem(5)
    assert torch.autograd.gradcheck(
        lambda h, w: selected_logprobs(h, w, targets, temperature=0.7, chunk_tokens=2), (hidden, weight)
    )


def test_large_logits_stay_finite() -> None:
    """Logits are +-1e4 in float32, where exp overflows."""
    weight = torch.tensor([[1.0], [-1.0]], requires_grad=True)
    hidden = torch.tensor([[1e4], [-1e4]], requires_grad=True)
    logprobs = selected_logprobs(hidden, weight, torch.tensor([0, 0]))
    logprobs.sum().backward()
    assert logprobs.tolist() == [0.0, -2e4]
    assert hidden.grad.tolist() == [[0.0], [2.0]]
    assert weight.grad.tolist() == [[-1e4], [1e4]]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_as_exact_as_float32_of_the_same_numbers(dtype: torch.dtype) -> None:
    """Values are exact. Gradients pass through half precision products and keep about that precision."""
    hidden, weight, targets, incoming = problem(300, hidden=32, vocabulary=50, dtype=dtype)
    came = values_and_gradients(
        lambda h, w: selected_logprobs(h, w, targets, chunk_tokens=64), hidden, weight, incoming
    )
    wide_hidden, wide_weight = hidden.detach().float().requires_grad_(), weight.detach().float().requires_grad_()
    expected = values_and_gradients(lambda h, w: dense_logprobs(h, w, targets, 1.0), wide_hidden, wide_weight, incoming)
    assert [tensor.dtype for tensor in came] == [torch.float32, dtype, dtype]
    torch.testing.assert_close(came[0], expected[0], rtol=1e-5, atol=1e-5)
    for one, other in zip(came[1:], expected[1:], strict=True):
        error = (one.float() - other).norm() / other.norm()
        assert error < 2 * torch.finfo(dtype).eps


def test_weight_gradient_is_summed_over_chunks_in_float32() -> None:
    """4096 chunks contribute equally. A bfloat16 sum would stop growing at 256 times the first contribution."""
    hidden = torch.ones(4096, 1, dtype=torch.bfloat16)
    weight = torch.zeros(2, 1, dtype=torch.bfloat16, requires_grad=True)
    selected_logprobs(hidden, weight, torch.zeros(4096, dtype=torch.int64), chunk_tokens=1).sum().backward()
    assert weight.grad.tolist() == [[2048.0], [-2048.0]]


class LargestTensor(TorchDispatchMode):
    """Record the number of elements of the largest tensor that any operation returned, except views."""

    def __init__(self) -> None:
        super().__init__()
        self.num_elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(tensor, Tensor) and not func.is_view:
                self.num_elements = max(self.num_elements, tensor.numel())
        return result


def largest_tensor(tokens: int, *, chunk_tokens: int = 8, is_weight_frozen: bool = False) -> int:
    hidden, weight, targets, incoming = problem(tokens, hidden=4, vocabulary=100, dtype=torch.float32)
    weight.requires_grad_(not is_weight_frozen)
    with LargestTensor() as largest:
        selected_logprobs(hidden, weight, targets, chunk_tokens=chunk_tokens).backward(incoming.float())
    return largest.num_elements


def test_memory_does_not_grow_with_the_tokens() -> None:
    """No tensor is larger than a chunk's logits, 8 * 100, or the hidden states of 200 positions, 200 * 4."""
    assert largest_tensor(8) == largest_tensor(64) == largest_tensor(200) == 800


class LiveBytes(TorchDispatchMode):
    """Record the peak number of bytes held by tensors that were allocated in this mode."""

    def __init__(self) -> None:
        super().__init__()
        self._live: dict[int, int] = {}
        self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                if storage._cdata not in self._live:
                    self._live[storage._cdata] = storage.nbytes()
                    weakref.finalize(storage, self._live.pop, storage._cdata, None)
        self.peak = max(self.peak, sum(self._live.values()))
        return result


@pytest.mark.parametrize("tokens", [16, 64, 256])
def test_logits_of_one_chunk_exist_at_a_time(tokens: int) -> None:
    """A second tensor of the size of a chunk's logits exceeds the bound.

    A chunk's logits are 16 * 1000 float32, 64,000 bytes. Weight, its gradient and per-token results take less than half
    of that.
    """
    hidden, weight, targets, incoming = problem(tokens, hidden=2, vocabulary=1000, dtype=torch.float32)
    incoming = incoming.float()
    with LiveBytes() as live:
        selected_logprobs(hidden, weight, targets, chunk_tokens=16).backward(incoming)
    assert 64_000 <= live.peak < 96_000


def test_frozen_weight_costs_no_gradient_buffer() -> None:
    """A chunk's logits have 2 * 100 elements, the weight's gradient 100 * 4."""
    assert largest_tensor(20, chunk_tokens=2) == 400
    assert largest_tensor(20, chunk_tokens=2, is_weight_frozen=True) == 200


def test_weight_may_be_freed_between_the_passes() -> None:
    """A ZeRO-3 parameter is empty after the forward pass and gathered into new memory before the backward pass.

    The function must not copy it.
    """
    hidden, weight, targets, incoming = problem(6)
    expected = values_and_gradients(lambda h, w: dense_logprobs(h, w, targets, 1.0), hidden, weight, incoming)
    parameter = torch.nn.Parameter(weight.detach().clone())
    saved: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: saved.append(tensor) or tensor, lambda tensor: tensor):
        selected_logprobs(hidden, parameter, targets, chunk_tokens=4)
    assert [tensor.data_ptr() for tensor in saved if tensor.shape == parameter.shape] == [parameter.data_ptr()]

    logprobs = selected_logprobs(hidden, parameter, targets, chunk_tokens=4)
    parameter.data = torch.empty(0, dtype=torch.float64)
    parameter.data = weight.detach().clone()
    logprobs.backward(incoming)
    torch.testing.assert_close(hidden.grad, expected[1])
    torch.testing.assert_close(parameter.grad, expected[2])


@pytest.mark.parametrize("frozen", ["hidden", "weight"])
def test_frozen_input_gets_no_gradient(frozen: str) -> None:
    hidden, weight, targets, incoming = problem(6)
    _, *expected = values_and_gradients(lambda h, w: dense_logprobs(h, w, targets, 1.0), hidden, weight, incoming)
    (hidden if frozen == "hidden" else weight).requires_grad_(False)
    selected_logprobs(hidden, weight, targets, chunk_tokens=4).backward(incoming)
    trained, frozen_tensor, gradient = (
        (weight, hidden, expected[1]) if frozen == "hidden" else (hidden, weight, expected[0])
    )
    assert frozen_tensor.grad is None
    torch.testing.assert_close(trained.grad, gradient)


def test_empty_input_has_a_zero_gradient() -> None:
    """A rank without work still joins the backward pass."""
    hidden, weight, targets, _ = problem(0)
    logprobs = selected_logprobs(hidden, weight, targets)
    logprobs.sum().backward()
    assert logprobs.shape == (0,)
    assert (weight.grad == 0).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weight": torch.zeros(5, 3)}, r"expected hidden \[S, H\].*got hidden \[2, 4\], weight \[5, 3\]"),
        ({"target_ids": torch.zeros(3, dtype=torch.int64)}, r"target_ids \[3\]"),
        ({"weight": torch.zeros(5, 4, dtype=torch.bfloat16)}, "must share a floating dtype"),
        ({"target_ids": torch.zeros(2)}, "target_ids must be int64"),
        ({"temperature": 0.0}, "temperature and chunk_tokens must be positive"),
        ({"chunk_tokens": 0}, "temperature and chunk_tokens must be positive"),
    ],
)
def test_mismatched_arguments_are_refused(change: dict[str, Any], message: str) -> None:
    arguments = {
        "hidden": torch.zeros(2, 4),
        "weight": torch.zeros(5, 4),
        "target_ids": torch.zeros(2, dtype=torch.int64),
    }
    with pytest.raises(ContractError, match=message):
        selected_logprobs(**(arguments | change))


@pytest.mark.parametrize("chunk_tokens", [1, 4, 100])
def test_support_and_entropy_equal_the_dense_computation(chunk_tokens: int) -> None:
    generator = torch.Generator().manual_seed(4)
    hidden, weight = (
        torch.randn(shape, generator=generator, dtype=torch.float64, requires_grad=True) for shape in ((9, 5), (13, 5))
    )
    targets = torch.randint(13, (9,), generator=generator)
    support = torch.stack([torch.randperm(13, generator=generator)[:3] for _ in range(9)])
    incoming = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in ((9,), (9, 3), (9,))]

    came = token_statistics(
        hidden, weight, targets, support_ids=support, with_entropy=True, temperature=0.7, chunk_tokens=chunk_tokens
    )
    gradients = torch.autograd.grad(came, (hidden, weight), incoming)

    logprobs = (hidden @ weight.T / 0.7).log_softmax(dim=-1)
    expected = (
        logprobs.gather(1, targets[:, None])[:, 0],
        logprobs.gather(1, support),
        -(logprobs.exp() * logprobs).sum(dim=-1),
    )
    for actual, value in zip(came, expected, strict=True):
        torch.testing.assert_close(actual, value, rtol=1e-12, atol=1e-12)
    for actual, value in zip(gradients, torch.autograd.grad(expected, (hidden, weight), incoming), strict=True):
        torch.testing.assert_close(actual, value, rtol=1e-11, atol=1e-12)


def test_gradients_of_support_and_entropy_alone_equal_finite_differences() -> None:
    generator = torch.Generator().manual_seed(5)
    hidden, weight = (
        torch.randn(shape, generator=generator, dtype=torch.float64, requires_grad=True) for shape in ((4, 3), (6, 3))
    )
    targets, support = torch.zeros(4, dtype=torch.int64), torch.tensor([[1, 5], [2, 3], [0, 1], [4, 2]])

    def support_only(h: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        return token_statistics(h, w, targets, support_ids=support, chunk_tokens=3).support_logprobs

    def entropy_only(h: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        return token_statistics(h, w, targets, with_entropy=True, chunk_tokens=3).entropies

    assert torch.autograd.gradcheck(support_only, (hidden, weight))
    assert torch.autograd.gradcheck(entropy_only, (hidden, weight))


def test_support_of_another_shape_is_refused() -> None:
    hidden, weight, targets = torch.zeros(2, 3), torch.zeros(5, 3), torch.zeros(2, dtype=torch.int64)
    with pytest.raises(ContractError, match=r"expected support_ids int64 \[2, K\], got torch.int64 \[3, 1\]"):
        token_statistics(hidden, weight, targets, support_ids=torch.zeros(3, 1, dtype=torch.int64))


@pytest.mark.parametrize("chunk_tokens", [2, 100])
def test_padding_rows_have_no_probability_and_no_gradient(chunk_tokens: int) -> None:
    generator = torch.Generator().manual_seed(6)
    hidden, weight = (
        torch.randn(shape, generator=generator, dtype=torch.float64, requires_grad=True) for shape in ((5, 4), (9, 4))
    )
    targets = torch.randint(7, (5,), generator=generator)
    came = token_statistics(hidden, weight, targets, with_entropy=True, chunk_tokens=chunk_tokens, vocabulary_size=7)
    incoming = [torch.ones(5, dtype=torch.float64), torch.ones(5, dtype=torch.float64)]
    outputs = (came.logprobs, came.entropies)
    gradients = torch.autograd.grad(outputs, (hidden, weight), incoming)

    logprobs = (hidden @ weight[:7].T).log_softmax(dim=-1)
    expected = (logprobs.gather(1, targets[:, None])[:, 0], -(logprobs.exp() * logprobs).sum(dim=-1))
    for actual, value in zip(outputs, expected, strict=True):
        torch.testing.assert_close(actual, value, rtol=1e-12, atol=1e-12)
    for actual, value in zip(gradients, torch.autograd.grad(expected, (hidden, weight), incoming), strict=True):
        torch.testing.assert_close(actual, value, rtol=1e-11, atol=1e-12)
    assert torch.equal(gradients[1][7:], torch.zeros(2, 4, dtype=torch.float64))
