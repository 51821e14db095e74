"""Masking: padding, empty and one-token responses, missing log-probabilities, half precision, extreme ratios."""

from __future__ import annotations

import math
from dataclasses import fields, replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rlad.errors import ContractError, TeacherScoresError
from rlad.objectives import Extras, Objective, TrrdConfig, build_objective, check_missing_teacher
from rlad.objectives.objective import TokenLosses
from rlad.objectives.tokens import Tokens

from .configurations import EVERY_CONFIG
from .slow_reference import Padded, ragged_batch

CONFIGS: list[dict[str, Any]] = [
    {"name": "grpo"},
    {"name": "trrd"},
    {"name": "trrd", "teacher_clamp_gradient": "straight_through"},
    {"name": "trrd", "alpha": 1.0},
]
NOT_FINITE = [math.nan, math.inf, -math.inf]
GARBAGE = [*NOT_FINITE, 1e30, -1e30, 0.0]

clipped_objectives = pytest.mark.parametrize("config", CONFIGS, ids=str)
every_objective = pytest.mark.parametrize("config", EVERY_CONFIG, ids=str)
quick = settings(max_examples=25, derandomize=True, deadline=None)
RAGGED = st.lists(st.integers(0, 7), min_size=1, max_size=6)
SEEDS = st.integers(0, 2**31 - 1)


def run(config: dict[str, Any], batch: Padded) -> tuple[Tensor, Tensor, dict[str, float]]:
    """Return the loss, its gradient with respect to all student columns, [B, T], and metrics."""
    student = {
        "policy": batch.policy,
        "entropies": batch.extras.entropies,
        "support_logprobs": batch.extras.support_logprobs,
    }
    leaves = {name: column.clone().requires_grad_() for name, column in student.items() if column is not None}
    extras = replace(batch.extras, **{name: leaf for name, leaf in leaves.items() if name != "policy"})
    output = build_objective(config)(**(batch.arguments(policy=leaves["policy"]) | {"extras": extras}))
    output.loss.backward()
    gradient = torch.zeros_like(batch.policy)
    for leaf in leaves.values():
        if leaf.grad is not None:
            gradient += leaf.grad if leaf.ndim == 2 else leaf.grad.sum(dim=-1)
    return output.loss.detach(), gradient, output.metrics


def with_garbage(column: Tensor, where: Tensor, seed: int, garbage: list[float]) -> Tensor:
    choice = torch.randint(len(garbage), column.shape, generator=torch.Generator().manual_seed(seed))
    return torch.where(where, torch.tensor(garbage, dtype=column.dtype)[choice], column)


def garbage_in_extras(batch: Padded, where: Tensor, seed: int, garbage: list[float]) -> Extras:
    columns = {each.name: getattr(batch.extras, each.name) for each in fields(batch.extras)}
    spoiled = {
        name: with_garbage(column, where if column.ndim == 2 else where[..., None].expand_as(column), seed, garbage)
        for name, column in columns.items()
        if isinstance(column, Tensor) and column.is_floating_point()
    }
    return replace(batch.extras, **spoiled)


@every_objective
@quick
@given(lengths=RAGGED, seed=SEEDS)
def test_padding_content_has_no_effect(config: dict[str, Any], lengths: list[int], seed: int) -> None:
    batch = ragged_batch(lengths, seed)
    columns = {
        name: with_garbage(getattr(batch, name), ~batch.mask, seed + i, GARBAGE)
        for i, name in enumerate(("policy", "behaviour", "teacher"))
    }
    loss, gradient, metrics = run(config, batch)
    garbage_loss, garbage_gradient, garbage_metrics = run(
        config, replace(batch, **columns, extras=garbage_in_extras(batch, ~batch.mask, seed, GARBAGE))
    )
    assert math.isfinite(loss.item())
    assert torch.equal(garbage_loss, loss)
    assert torch.equal(garbage_gradient, gradient)
    assert garbage_metrics == metrics
    assert (garbage_gradient[~batch.mask] == 0).all()


@every_objective
def test_empty_responses_count_as_zero(config: dict[str, Any]) -> None:
    """Two responses, one empty: half the loss of the other alone, except for a mean over tokens."""
    both = ragged_batch([0, 3], seed=2)
    extras = {each.name: getattr(both.extras, each.name) for each in fields(both.extras)}
    of_second = replace(
        both.extras, **{name: column[1:] for name, column in extras.items() if isinstance(column, Tensor)}
    )
    alone = replace(
        both,
        extras=of_second,
        **{name: getattr(both, name)[1:] for name in ("policy", "behaviour", "teacher", "advantages", "mask")},
    )
    loss, gradient, _ = run(config, both)
    loss_alone, gradient_alone, _ = run(config, alone)
    share = 1 if config.get("aggregation") == "token_mean" else 2  # an empty response adds no token
    assert loss.item() == pytest.approx(loss_alone.item() / share, rel=1e-12)
    torch.testing.assert_close(gradient[1:], gradient_alone / share, rtol=1e-12, atol=0)
    assert (gradient[0] == 0).all()


@clipped_objectives
@pytest.mark.parametrize("shape", [(3, 4), (1, 0), (2, 1)])
def test_batch_without_any_token_has_zero_loss_and_gradient(config: dict[str, Any], shape: tuple[int, int]) -> None:
    column = torch.full(shape, math.nan)
    batch = Padded(
        policy=column, behaviour=column, teacher=column, advantages=torch.ones(shape[0]), mask=torch.zeros(shape)
    )
    loss, gradient, metrics = run(config, batch)
    assert loss.item() == 0
    assert gradient.tolist() == torch.zeros(shape).tolist()
    assert all(value == 0 for value in metrics.values())


@every_objective
@pytest.mark.parametrize("column", ["behaviour", "teacher"])
@quick
@given(lengths=RAGGED, seed=SEEDS)
def test_token_without_a_log_probability_equals_a_masked_token(
    config: dict[str, Any], column: str, lengths: list[int], seed: int
) -> None:
    batch = ragged_batch(lengths, seed)
    missing = torch.rand(batch.mask.shape, generator=torch.Generator().manual_seed(seed)) < 0.4
    is_used = column == "behaviour" or build_objective(config).config.uses_teacher
    loss, gradient, metrics = run(
        config, replace(batch, **{column: with_garbage(getattr(batch, column), missing, seed, NOT_FINITE)})
    )
    expected_loss, expected_gradient, _ = run(config, replace(batch, mask=batch.mask & ~missing) if is_used else batch)
    if (
        config.get("aggregation") == "token_mean" and is_used
    ):  # the denominator is counted before missing values are known
        share = (batch.mask & ~missing).sum().double().clamp(min=1) / batch.mask.sum().clamp(min=1)
        torch.testing.assert_close(loss, expected_loss * share, rtol=1e-12, atol=1e-15)
        torch.testing.assert_close(gradient, expected_gradient * share, rtol=1e-12, atol=1e-15)
    else:
        assert torch.equal(loss, expected_loss)
        assert torch.equal(gradient, expected_gradient)
    if is_used:
        assert metrics[f"objective/{column}_missing_tokens"] == (batch.mask & missing).sum().item()


@clipped_objectives
@quick
@given(lengths=RAGGED, seed=SEEDS, huge=st.sampled_from([0.5, 50.0, 1e4, 1e30]))
def test_zero_advantage_gives_exactly_zero_gradient(
    config: dict[str, Any], lengths: list[int], seed: int, huge: float
) -> None:
    """Holds for any teacher and any distance between the policies."""
    drawn = ragged_batch(lengths, seed)
    columns = {name: (huge * (getattr(drawn, name))).float() for name in ("policy", "behaviour", "teacher")}
    policy = with_garbage(columns["policy"], drawn.policy > drawn.behaviour, seed, [-math.inf])
    batch = replace(drawn, **(columns | {"policy": policy}), advantages=torch.zeros(len(lengths)))
    loss, gradient, _ = run(config, batch)
    assert loss.item() == 0
    assert (gradient == 0).all()


@clipped_objectives
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("gap", [15.0, 60.0, 3e4])
def test_no_ratio_overflows(config: dict[str, Any], dtype: torch.dtype, gap: float) -> None:
    """Both signs of the gap and of the advantage; e^15 already exceeds float16, e^90 float32."""
    policy = torch.tensor([[0.0], [0.0], [-gap], [-gap]], dtype=dtype)
    batch = Padded(
        policy=policy,
        behaviour=-gap - policy,
        teacher=-gap - policy,
        advantages=torch.tensor([2.0, -2.0, 2.0, -2.0], dtype=dtype),
        mask=torch.ones(4, 1, dtype=dtype),
    )
    loss, gradient, metrics = run(config, batch)
    assert math.isfinite(loss.item())
    assert gradient.isfinite().all()
    assert all(math.isfinite(value) for value in metrics.values())
    assert gradient[0] == 0  # A > 0, ratio far above the range: clipped
    assert gradient[3] == 0  # A < 0, ratio far below the range: clipped


def test_ratio_beyond_the_limit_is_constant_without_gradient() -> None:
    """A < 0 is unclipped above the range: the loss is e^20 for every log ratio from 20 on."""
    policy = torch.zeros(1, 3, dtype=torch.float64, requires_grad=True)
    behaviour = torch.tensor([[-19.0, -21.0, -300.0]], dtype=torch.float64)
    output = build_objective({"name": "grpo"}).packed(
        policy_logprobs=policy[0], behaviour_logprobs=behaviour[0], advantages=-torch.ones(3), weights=torch.ones(3)
    )
    output.loss.backward()
    assert output.loss.item() == pytest.approx(math.exp(19) + 2 * math.exp(20))
    assert policy.grad.tolist() == [[pytest.approx(math.exp(19)), 0.0, 0.0]]


@clipped_objectives
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(config: dict[str, Any], dtype: torch.dtype) -> None:
    exact = ragged_batch([9, 4, 1, 6], seed=7, spread=0.3)
    half = {name: getattr(exact, name).to(dtype) for name in ("policy", "behaviour", "teacher", "advantages")}
    loss, gradient, _ = run(config, replace(exact, **half))
    float32_loss, float32_gradient, _ = run(
        config, replace(exact, **{name: column.float() for name, column in half.items()})
    )
    assert loss.dtype == torch.float32
    assert gradient.dtype == dtype
    assert torch.equal(loss, float32_loss)
    assert torch.equal(gradient, float32_gradient.to(dtype))


def test_nan_policy_logprob_is_not_masked() -> None:
    """NaN in the student's own log-probabilities must reach the gradient check of the learner."""
    batch = ragged_batch([3], seed=0)
    policy = batch.policy.clone()
    policy[0, 1] = math.nan
    loss, _, _ = run({"name": "grpo"}, replace(batch, policy=policy))
    assert math.isnan(loss.item())


@every_objective
@quick
@given(lengths=RAGGED, seed=SEEDS)
def test_packed_form_equals_the_padded_form(config: dict[str, Any], lengths: list[int], seed: int) -> None:
    batch = ragged_batch(lengths, seed)
    loss, gradient, metrics = run(config, batch)
    responses = torch.arange(len(lengths))[:, None].expand_as(batch.mask)[batch.mask]
    sizes = torch.tensor(lengths, dtype=torch.float64)
    # Every token is followed by a token of weight 0 with garbage, which prompt positions may hold.
    columns = {name: getattr(batch, name)[batch.mask] for name in ("policy", "behaviour", "teacher")} | {
        "advantages": batch.advantages[responses]
    }
    extras = {each.name: getattr(batch.extras, each.name) for each in fields(batch.extras)}
    columns |= {name: column[batch.mask] for name, column in extras.items() if isinstance(column, Tensor)}
    packed = {
        name: torch.stack(
            [column, torch.full_like(column, math.nan if column.is_floating_point() else 1)], dim=1
        ).flatten(0, 1)
        for name, column in columns.items()
    }
    weight = {
        "response_mean": 1 / (len(lengths) * sizes[responses]),
        "token_mean": torch.full_like(sizes[responses], 1 / max(1, sum(lengths))),
        "fixed_length": torch.full_like(sizes[responses], 1 / (len(lengths) * config.get("fixed_length", 1))),
    }[config.get("aggregation", "response_mean")]
    leaves = {name: packed[name].requires_grad_() for name in ("policy", "entropies", "support_logprobs")}
    output = build_objective(config).packed(
        policy_logprobs=packed["policy"],
        behaviour_logprobs=packed["behaviour"],
        teacher_logprobs=packed["teacher"],
        advantages=packed["advantages"],
        weights=torch.stack([weight, torch.zeros_like(weight)], dim=1).flatten(),
        extras=replace(batch.extras, **{name: packed[name] for name in extras if name in packed}),
    )
    output.loss.backward()
    packed_gradient = torch.zeros_like(packed["policy"])
    for leaf in leaves.values():
        if leaf.grad is not None:
            packed_gradient += leaf.grad if leaf.ndim == 1 else leaf.grad.sum(dim=-1)
    assert output.loss.item() == pytest.approx(loss.item(), rel=1e-12, abs=1e-14)
    torch.testing.assert_close(packed_gradient[::2], gradient[batch.mask], rtol=1e-12, atol=1e-14)
    assert (packed_gradient[1::2] == 0).all()
    assert output.metrics == pytest.approx(metrics, rel=1e-12)


class OnePerToken(Objective[TrrdConfig]):
    """Objective with loss 1 for every token, valid or not, that records its input."""

    def token_losses(self, tokens: Tokens) -> TokenLosses:
        self.seen = tokens
        return TokenLosses(losses=tokens.policy_logprobs + 1, means={})


def test_invalid_tokens_are_zero_and_their_loss_does_not_count() -> None:
    objective = OnePerToken(TrrdConfig())
    zero, nan = 0.0, math.nan
    loss = objective.packed(
        policy_logprobs=torch.tensor([zero, nan, nan, nan]),
        behaviour_logprobs=torch.tensor([-1.0, -math.inf, -1.0, nan]),
        teacher_logprobs=torch.tensor([-2.0, -2.0, nan, nan]),
        advantages=torch.tensor([3.0, 3.0, 3.0, nan]),
        weights=torch.tensor([0.5, 0.5, 0.5, 0.0]),
    ).loss
    assert loss.item() == 0.5
    assert objective.seen.is_valid.tolist() == [True, False, False, False]
    assert objective.seen.policy_logprobs.tolist() == [0, 0, 0, 0]
    assert objective.seen.behaviour_logprobs.tolist() == [-1, 0, 0, 0]
    assert objective.seen.teacher_logprobs.tolist() == [-2, 0, 0, 0]
    assert objective.seen.advantages.tolist() == [3, 0, 0, 0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"teacher_logprobs": None}, "needs teacher_logprobs, got None"),
        ({"behaviour_logprobs": torch.zeros(2, 4)}, r"behaviour_logprobs must have shape \[2, 3\].*got \[2, 4\]"),
        ({"teacher_logprobs": torch.zeros(3)}, r"teacher_logprobs must have shape \[2, 3\].*got \[3\]"),
        ({"advantages": torch.zeros(2, 3)}, r"advantages must have shape \[2\].*got \[2, 3\]"),
        ({"mask": torch.ones(2, 1)}, r"mask must have shape \[2, 3\].*got \[2, 1\]"),
        ({"mask": torch.full((2, 3), 0.5)}, "mask must hold only 0 and 1"),
        ({"policy_logprobs": torch.zeros(3)}, r"policy_logprobs must be \[B, T\], got shape \[3\]"),
        ({"policy_logprobs": torch.zeros(2, 3, dtype=torch.int64)}, "must be floating point, got torch.int64"),
    ],
)
def test_mismatched_padded_arguments_are_refused(change: dict[str, Any], message: str) -> None:
    zeros = torch.zeros(2, 3)
    arguments = {
        "policy_logprobs": zeros,
        "behaviour_logprobs": zeros,
        "teacher_logprobs": zeros,
        "advantages": torch.zeros(2),
        "mask": torch.ones(2, 3),
    }
    with pytest.raises(ContractError, match=message):
        build_objective({"name": "trrd"})(**(arguments | change))


def test_mismatched_packed_arguments_are_refused() -> None:
    row = {
        name: torch.zeros(3)
        for name in ("policy_logprobs", "behaviour_logprobs", "teacher_logprobs", "advantages", "weights")
    }
    objective = build_objective({"name": "trrd"})
    for name in row:
        with pytest.raises(ContractError, match=r"must (have shape|be) \[(3|S)\]"):
            objective.packed(**(row | {name: torch.zeros(1, 3)}))


def test_missing_teacher_fraction_is_tolerated_up_to_the_limit() -> None:
    check_missing_teacher(0, 0, 0.0)
    check_missing_teacher(0, 100, 0.0)
    with pytest.raises(TeacherScoresError, match="1 of 1 response tokens"):
        check_missing_teacher(1, 1, 0.5)
    check_missing_teacher(29, 100, 0.29)
    with pytest.raises(TeacherScoresError, match=r"30 of 100 response tokens \(30.00%\).*29.00%"):
        check_missing_teacher(30, 100, 0.29)
    with pytest.raises(TeacherScoresError):
        check_missing_teacher(1, 10**9, 0.0)


@pytest.mark.parametrize(("tail", "missing"), [(math.nan, 1), (math.inf, 1), (-math.inf, 0), (-0.5, 0)])
def test_tail_of_nan_or_plus_infinity_is_missing_and_minus_infinity_is_a_score(tail: float, missing: int) -> None:
    batch = ragged_batch([2], seed=3)
    tails = batch.extras.teacher_tail_logprobs.clone()
    tails[0, 0] = tail
    _, gradient, metrics = run(
        {"name": "opd", "estimator": "topk", "top_k": 3},
        replace(batch, extras=replace(batch.extras, teacher_tail_logprobs=tails)),
    )
    assert metrics["objective/teacher_missing_tokens"] == missing
    assert (gradient[0, 0] == 0) == (missing == 1)
