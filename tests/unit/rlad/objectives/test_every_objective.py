"""Every objective, estimator and option equals an independent float64 implementation and finite differences."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rlad.objectives import build_objective

from . import independent
from .configurations import EVERY_CONFIG
from .slow_reference import Padded, ragged_batch

every_objective = pytest.mark.parametrize("config", EVERY_CONFIG, ids=str)
RAGGED = st.lists(st.integers(0, 5), min_size=1, max_size=4)


def student_of(batch: Padded) -> dict[str, Tensor]:
    columns = {"policy": batch.policy, "entropies": batch.extras.entropies, "support": batch.extras.support_logprobs}
    return {name: column.clone().requires_grad_() for name, column in columns.items()}


def loss_of(config: dict[str, Any], batch: Padded, student: dict[str, Tensor]) -> Tensor:
    extras = replace(batch.extras, entropies=student["entropies"], support_logprobs=student["support"])
    return build_objective(config)(**(batch.arguments(policy=student["policy"]) | {"extras": extras})).loss


def gradients(loss: Tensor, student: dict[str, Tensor]) -> dict[str, Tensor]:
    found = (
        torch.autograd.grad(loss, list(student.values()), allow_unused=True)
        if loss.requires_grad
        else [None] * len(student)
    )
    return {
        name: torch.zeros_like(student[name]) if each is None else each
        for name, each in zip(student, found, strict=True)
    }


def gradient_of(config: dict[str, Any], batch: Padded) -> dict[str, Tensor]:
    student = student_of(batch)
    return gradients(loss_of(config, batch, student), student)


@every_objective
@settings(max_examples=15, derandomize=True, deadline=None)
@given(lengths=RAGGED, seed=st.integers(0, 2**31 - 1))
def test_loss_and_gradient_equal_an_independent_implementation(
    config: dict[str, Any], lengths: list[int], seed: int
) -> None:
    batch = ragged_batch(lengths, seed)
    ours, theirs = student_of(batch), student_of(batch)
    loss, expected = loss_of(config, batch, ours), independent.loss(config, batch, theirs)
    torch.testing.assert_close(loss, expected, rtol=1e-11, atol=1e-13)
    found = gradients(loss, ours)
    for name, gradient in gradients(expected, theirs).items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-10, atol=1e-12)


@every_objective
def test_gradient_equals_finite_differences(config: dict[str, Any]) -> None:
    if config.get("teacher_clamp_gradient") == "straight_through" or config.get("reward_student") == "current":
        pytest.skip("the gradient differs from that of the value by design; the independent implementation covers it")
    batch = ragged_batch([4, 1, 0, 3], seed=5)
    gradient = gradient_of(config, batch)
    step = 1e-6
    for name, column in student_of(batch).items():
        for index in range(column.numel()):
            values = []
            for sign in (1, -1):
                student = {other: each.detach().clone() for other, each in student_of(batch).items()}
                student[name].view(-1)[index] += sign * step
                values.append(loss_of(config, batch, student).item())
            slope = (values[0] - values[1]) / (2 * step)
            assert gradient[name].flatten()[index].item() == pytest.approx(slope, rel=1e-5, abs=1e-8), (name, index)


@pytest.mark.parametrize(
    "config", [each for each in EVERY_CONFIG if each["name"] in ("kdrl", "opd", "exopd", "eopd", "rlsd")], ids=str
)
def test_gradient_of_a_distilling_objective_depends_on_the_teacher(config: dict[str, Any]) -> None:
    batch = ragged_batch([4, 3], seed=1)
    everything = replace(batch, extras=replace(batch.extras, is_imitated=torch.ones_like(batch.mask)))
    other = ragged_batch([4, 3], seed=2)
    moved = replace(
        everything,
        teacher=other.teacher,
        extras=replace(
            everything.extras,
            teacher_support_logprobs=other.extras.teacher_support_logprobs,
            teacher_tail_logprobs=other.extras.teacher_tail_logprobs,
        ),
    )
    before, after = gradient_of(config, everything), gradient_of(config, moved)
    assert max((before[name] - after[name]).abs().max().item() for name in before) > 1e-3


@every_objective
def test_only_the_student_gets_a_gradient(config: dict[str, Any]) -> None:
    batch = ragged_batch([7, 6], seed=0)
    constants = {name: getattr(batch, name).clone().requires_grad_() for name in ("behaviour", "teacher", "advantages")}
    names = ("sampler_logprobs", "reference_logprobs", "teacher_support_logprobs", "teacher_tail_logprobs")
    extra = {name: getattr(batch.extras, name).clone().requires_grad_() for name in names}
    frozen = replace(batch, **constants, extras=replace(batch.extras, **extra))
    student = student_of(batch)
    loss_of(config, frozen, student).backward()
    assert all(column.grad is None for column in [*constants.values(), *extra.values()])
    assert any(column.grad is not None and column.grad.abs().sum() > 0 for column in student.values())
