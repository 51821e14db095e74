"""Divergence from a teacher that is given by hidden states, against full softmaxes in plain PyTorch."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from rlad.distributions.hidden_state_distillation import DistillationStatistics, distillation_statistics
from rlad.errors import ContractError

POSITIONS, HIDDEN, TEACHER_HIDDEN, ROWS, TEACHER_ROWS, TOKENS = 9, 5, 7, 12, 14, 11


def inputs(dtype: torch.dtype = torch.float64, *, scale: float = 1.0) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return student states and layer, teacher states and layer, and targets."""
    generator = torch.Generator().manual_seed(0)
    shapes = ((POSITIONS, HIDDEN), (ROWS, HIDDEN), (POSITIONS, TEACHER_HIDDEN), (TEACHER_ROWS, TEACHER_HIDDEN))
    student, layer, teacher, teacher_layer = (
        (scale * torch.randn(shape, generator=generator, dtype=torch.float64)).to(dtype) for shape in shapes
    )
    targets = torch.randint(0, TOKENS, (POSITIONS,), generator=generator)
    return student.requires_grad_(), layer.requires_grad_(), teacher, teacher_layer, targets


def full_softmaxes(
    hidden: Tensor, weight: Tensor, teacher_hidden: Tensor, teacher_weight: Tensor, targets: Tensor, temperature: float
) -> DistillationStatistics:
    """Return the same statistics from [positions, tokens] log-softmaxes, without chunks and without own gradients."""
    student = (hidden.double() @ weight.double()[:TOKENS].T / temperature).log_softmax(dim=-1)
    teacher = (teacher_hidden.double() @ teacher_weight.double()[:TOKENS].T / temperature).log_softmax(dim=-1)
    rows = torch.arange(len(targets))
    return DistillationStatistics(
        logprobs=student[rows, targets],
        divergences=(student.exp() * (student - teacher)).sum(dim=-1),
        teacher_logprobs=teacher[rows, targets],
        entropies=-(student.exp() * student).sum(dim=-1),
    )


def loss_of(statistics: DistillationStatistics) -> Tensor:
    """Return a scalar that depends on each differentiable value with a coefficient of its own."""
    columns = (statistics.logprobs, statistics.divergences, statistics.entropies)
    coefficients = torch.randn((3, POSITIONS), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    losses = [(row * column).sum() for row, column in zip(coefficients, columns, strict=True) if column is not None]
    return torch.stack(losses).sum()


@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize("chunk_tokens", [1, 4, 100])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_values_and_gradients_equal_those_of_full_softmaxes(
    dtype: torch.dtype, tolerance: float, chunk_tokens: int, temperature: float
) -> None:
    arguments = inputs(dtype)
    found = distillation_statistics(
        *arguments, with_entropy=True, temperature=temperature, chunk_tokens=chunk_tokens, vocabulary_size=TOKENS
    )
    expected = full_softmaxes(*arguments, temperature)
    for value, reference in zip(found, expected, strict=True):
        assert value is not None
        assert value.dtype == dtype
        torch.testing.assert_close(value.double(), reference, atol=tolerance, rtol=0)
    gradients = torch.autograd.grad(loss_of(found), arguments[:2])
    for gradient, reference in zip(gradients, torch.autograd.grad(loss_of(expected), arguments[:2]), strict=True):
        torch.testing.assert_close(gradient.double(), reference.double(), atol=tolerance, rtol=tolerance)
    assert not gradients[1][TOKENS:].any(), "padding rows have no gradient"


def test_equal_models_have_no_divergence_and_no_gradient() -> None:
    student, layer, _, _, targets = inputs()
    found = distillation_statistics(student, layer, student, layer, targets, chunk_tokens=2)
    assert found.entropies is None
    assert found.divergences.abs().max() < 1e-14
    for gradient in torch.autograd.grad(found.divergences.sum(), (student, layer)):
        assert gradient.abs().max() < 1e-14


def test_half_precision_is_multiplied_in_float32() -> None:
    arguments = inputs(torch.bfloat16, scale=3.0)
    found = distillation_statistics(*arguments, vocabulary_size=TOKENS)
    expected = full_softmaxes(*arguments, 1.0)
    assert found.divergences.dtype == torch.float32
    torch.testing.assert_close(found.divergences.double(), expected.divergences, atol=2e-5, rtol=2e-6)


def test_data_types_of_student_and_teacher_may_differ() -> None:
    student, layer, _, _, targets = inputs(torch.float32)
    _, _, teacher, teacher_layer, _ = inputs(torch.bfloat16)
    found = distillation_statistics(student, layer, teacher, teacher_layer, targets, vocabulary_size=TOKENS)
    expected = full_softmaxes(student, layer, teacher, teacher_layer, targets, 1.0)
    torch.testing.assert_close(found.divergences.double(), expected.divergences, atol=1e-5, rtol=0)


def test_large_logits_stay_finite() -> None:
    arguments = inputs(torch.float32, scale=40.0)
    found = distillation_statistics(*arguments, with_entropy=True, vocabulary_size=TOKENS)
    gradients = torch.autograd.grad(loss_of(found), arguments[:2])
    assert all(bool(value.isfinite().all()) for value in (*gradients, *found) if value is not None)


def test_wrong_shapes_are_refused() -> None:
    student, layer, teacher, teacher_layer, targets = inputs()
    with pytest.raises(ContractError, match=r"of one dtype, with V at least 11; got .* \[10, 7"):
        distillation_statistics(student, layer, teacher, teacher_layer[:10], targets, vocabulary_size=TOKENS)
    with pytest.raises(ContractError, match=r"expected teacher_hidden \[9, H\]"):
        distillation_statistics(student, layer, teacher[1:], teacher_layer, targets)
    with pytest.raises(ContractError, match="of one dtype"):
        distillation_statistics(student, layer, teacher.float(), teacher_layer, targets)
    with pytest.raises(ContractError, match="target_ids int64"):
        distillation_statistics(student, layer, teacher, teacher_layer, targets.int())
    for settings in ({"temperature": 0.0}, {"chunk_tokens": 0}):
        with pytest.raises(ContractError, match="must be positive"):
            distillation_statistics(student, layer, teacher, teacher_layer, targets, **settings)  # type: ignore[arg-type]
