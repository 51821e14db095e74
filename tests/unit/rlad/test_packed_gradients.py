"""The gradient does not depend on how a batch is cut into rows, micro-batches and ranks."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from rlad.advantages import OverlongPenalty, group_advantages, imitated_responses, shaped_rewards
from rlad.contracts import ScoredGroup
from rlad.microbatches import plan_microbatches
from rlad.objectives import Extras, Objective, build_objective
from rlad.packing import BatchCounts, BatchRules, LossNormalizer, build_training_batch, dummy_batch
from rlad.training_batch import TrainingBatch

from .scored_groups import SUPPORT, VOCABULARY, every_sequence, scored_group

CONFIGS: list[dict[str, Any]] = [
    {"name": "trrd"},
    {"name": "trrd", "alpha": 1.0},
    {"name": "grpo"},
    {"name": "grpo", "advantage": "rloo", "aggregation": "token_mean"},
    {"name": "trrd", "advantage": "group_mean_only", "aggregation": "fixed_length", "fixed_length": 9},
    {"name": "trrd", "reference_kl": 0.3, "entropy_bonus": {"coefficient": 0.2}},
    {"name": "kdrl", "beta": 0.5, "imitate": "response"},
    {"name": "kdrl", "beta": 0.5, "estimator": "k1_reward", "imitate": "group"},
    {"name": "opd", "estimator": "topk", "top_k": SUPPORT},
    {"name": "opd", "aggregation": "token_mean"},
    {"name": "exopd"},
    {"name": "eopd", "top_k": SUPPORT, "entropy_threshold": 0.5},
    {"name": "rlsd"},
    {"name": "sft"},
]


class TinyPolicy(nn.Module):
    """Next-token distribution from the current token and its position, which suffices to detect a wrong cut."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.embedding = nn.Parameter(torch.randn(VOCABULARY, 8, generator=generator, dtype=torch.float64))
        self.position = nn.Parameter(torch.randn(32, 8, generator=generator, dtype=torch.float64))
        self.output = nn.Parameter(torch.randn(VOCABULARY, 8, generator=generator, dtype=torch.float64))

    def forward(
        self, token_ids: Tensor, position_ids: Tensor, target_ids: Tensor, support_ids: Tensor | None
    ) -> dict[str, Tensor | None]:
        logprobs = (torch.tanh(self.embedding[token_ids] + self.position[position_ids]) @ self.output.T).log_softmax(
            dim=-1
        )
        return {
            "policy": logprobs.gather(-1, target_ids[..., None])[..., 0],
            "entropies": -(logprobs.exp() * logprobs).sum(dim=-1),
            "support_logprobs": None if support_ids is None else logprobs.gather(-1, support_ids),
        }

    def gradient_of(self, loss: Tensor) -> Tensor:
        return torch.cat([gradient.flatten() for gradient in torch.autograd.grad(loss, list(self.parameters()))])


def padded_gradient(
    objective: Objective[Any],
    groups: dict[str, ScoredGroup],
    truncated: str,
    dtype: torch.dtype,
    overlong: OverlongPenalty | None = None,
) -> tuple[float, Tensor]:
    """Loss and gradient of the padded form, one row per response, built token by token from the records."""
    model, config = TinyPolicy().to(dtype), objective.config
    sequences = every_sequence(groups)
    shape = (len(sequences), 16)
    ids, targets, positions = (torch.zeros(shape, dtype=torch.int64) for _ in range(3))
    behaviour, teacher, reference, tail = (torch.full(shape, math.nan) for _ in range(4))
    support_ids, support = torch.zeros(*shape, SUPPORT, dtype=torch.int64), torch.full((*shape, SUPPORT), math.nan)
    mask, is_imitated, advantages = (
        torch.zeros(shape, dtype=torch.bool),
        torch.zeros(shape, dtype=torch.bool),
        torch.zeros(shape[0]),
    )
    for i, (uid, index) in enumerate(sequences):
        scored = groups[uid]
        response, scores = scored.group.response(index), scored.teacher_scores
        rewards = shaped_rewards(scored.verdicts.rewards, scored.group.response_lengths, overlong)
        advantages[i] = float(group_advantages(rewards, config.advantage_estimator)[index])
        is_imitated[i] = bool(imitated_responses(scored.verdicts.rewards, config.imitation_mask)[index])
        previous = int(scored.group.prompt_ids[-1])
        for t in range(response.stop - response.start):
            at = response.start + t
            ids[i, t], targets[i, t] = previous, int(scored.group.response_ids[at])
            positions[i, t] = len(scored.group.prompt_ids) - 1 + t
            previous = int(targets[i, t])
            behaviour[i, t], teacher[i, t] = float(scored.group.behaviour_logprobs[at]), float(scores.logprobs[at])
            reference[i, t], tail[i, t] = float(scored.reference_scores.logprobs[at]), float(scores.tail_logprobs[at])
            for k in range(SUPPORT):
                support_ids[i, t, k] = int(scores.support_ids[SUPPORT * at + k])
                support[i, t, k] = float(scores.support_logprobs[SUPPORT * at + k])
            mask[i, t] = truncated == "keep" or not scored.group.is_truncated[index]
    outputs = model(ids, positions, targets, support_ids)
    extras = Extras(
        reference_logprobs=reference,
        entropies=outputs["entropies"],
        is_imitated=is_imitated,
        support_logprobs=outputs["support_logprobs"],
        teacher_support_logprobs=support,
        teacher_tail_logprobs=tail,
    )
    loss = objective(
        policy_logprobs=outputs["policy"],
        behaviour_logprobs=behaviour,
        teacher_logprobs=teacher,
        advantages=advantages,
        mask=mask,
        extras=extras,
    ).loss
    return loss.item(), model.gradient_of(loss)


def packed_loss(objective: Objective[Any], model: TinyPolicy, batch: TrainingBatch) -> Tensor:
    columns = {
        name: torch.from_numpy(column) if isinstance(column, np.ndarray) else column
        for name, column in batch.to_columns().items()
    }
    ids, support = (
        None if columns[name] is None else columns[name].view(-1, batch.support_size)
        for name in ("support_ids", "teacher_support_logprobs")
    )
    outputs = model(columns["token_ids"], columns["position_ids"], columns["target_ids"], ids)
    return objective.packed(
        policy_logprobs=outputs["policy"],
        behaviour_logprobs=columns["behaviour_logprobs"],
        teacher_logprobs=columns["teacher_logprobs"],
        advantages=columns["advantages"],
        weights=columns["weights"],
        extras=Extras(
            reference_logprobs=columns["reference_logprobs"],
            entropies=outputs["entropies"],
            is_imitated=columns["is_imitated"],
            support_logprobs=outputs["support_logprobs"],
            teacher_support_logprobs=support,
            teacher_tail_logprobs=columns["teacher_tail_logprobs"],
        ),
    ).loss


def cut_gradient(
    objective: Objective[Any],
    groups: dict[str, ScoredGroup],
    sequences: list[tuple[str, int]],
    *,
    token_budget: int,
    ranks: int,
    truncated: Literal["keep", "mask"],
    dtype: torch.dtype = torch.float64,
) -> tuple[float, Tensor, BatchCounts]:
    """Loss, gradient and counts, summed over micro-batches and ranks as the learner does."""
    model = TinyPolicy().to(dtype)
    counted = [
        int(scored.group.response_lengths[index])
        for scored in groups.values()
        for index in range(scored.group.num_responses)
        if truncated == "keep" or not scored.group.is_truncated[index]
    ]
    normalizer = LossNormalizer(num_responses=len(every_sequence(groups)), num_tokens=sum(counted) or 1)
    batch_rules = BatchRules(objective=objective.config, truncated=truncated)
    sequences = [(uid, index) for uid, index in sequences if groups[uid].group.response_lengths[index] > 0]
    lengths = [
        len(groups[uid].group.prompt_ids) + int(groups[uid].group.response_lengths[index]) for uid, index in sequences
    ]
    loss, counts = 0.0, BatchCounts()
    gradient = torch.zeros(sum(parameter.numel() for parameter in model.parameters()), dtype=dtype)
    for batches in plan_microbatches(lengths, token_budget=token_budget, ranks=ranks):
        for row in batches:
            batch, found = build_training_batch(
                groups, [sequences[i] for i in row], normalizer=normalizer, rules=batch_rules
            )
            part = packed_loss(objective, model, batch)
            loss, gradient, counts = loss + part.item(), gradient + model.gradient_of(part), counts + found
    return loss, gradient, counts


def ragged_groups(
    shapes: list[list[int]], seed: int, overlong: OverlongPenalty | None = None
) -> dict[str, ScoredGroup]:
    """Groups that include empty and truncated responses and missing log-probabilities."""
    groups = {}
    for i, lengths in enumerate(shapes):
        scored = scored_group(f"g{i}", lengths, prompt_tokens=1 + i, seed=seed + i, truncated=[len(lengths) - 1])
        generator = np.random.default_rng(seed)
        scored.teacher_scores.logprobs[generator.random(sum(lengths)) < 0.15] = np.nan
        scored.group.behaviour_logprobs[generator.random(sum(lengths)) < 0.05] = -np.inf
        scored.reference_scores.logprobs[generator.random(sum(lengths)) < 0.05] = np.inf
        scored.teacher_scores.support_logprobs[generator.random(SUPPORT * sum(lengths)) < 0.02] = np.nan
        rewards = shaped_rewards(scored.verdicts.rewards, scored.group.response_lengths, overlong)
        groups[f"g{i}"] = replace(scored, rewards=rewards)
    return groups


@settings(max_examples=120, derandomize=True, deadline=None)
@given(
    shapes=st.lists(st.lists(st.integers(0, 9), min_size=2, max_size=5), min_size=1, max_size=3),
    seed=st.integers(0, 10_000),
    config=st.sampled_from(CONFIGS),
    overlong=st.sampled_from([None, OverlongPenalty(max_tokens=9, buffer_tokens=4, penalty=0.7)]),
    truncated=st.sampled_from(["keep", "mask"]),
    token_budget=st.integers(1, 60),
    ranks=st.integers(1, 3),
    data=st.data(),
)
def test_gradient_does_not_depend_on_how_the_batch_is_cut(
    shapes: list[list[int]],
    seed: int,
    config: dict[str, Any],
    overlong: OverlongPenalty | None,
    truncated: Literal["keep", "mask"],
    token_budget: int,
    ranks: int,
    data: st.DataObject,
) -> None:
    """Any order, token budget and number of ranks gives the gradient of one row, and that of the padded form.

    The latter holds to 1e-6, since the rows' weights and advantages are float32.
    """
    objective, groups = build_objective(config), ragged_groups(shapes, seed, overlong)
    sequences = every_sequence(groups)
    shuffled = data.draw(st.permutations(sequences))
    loss, gradient, counts = cut_gradient(
        objective, groups, shuffled, token_budget=token_budget, ranks=ranks, truncated=truncated
    )
    whole_loss, whole_gradient, whole_counts = cut_gradient(
        objective, groups, sequences, token_budget=10**6, ranks=1, truncated=truncated
    )
    assert counts == whole_counts
    assert loss == pytest.approx(whole_loss, rel=1e-10, abs=1e-12)
    torch.testing.assert_close(gradient, whole_gradient, rtol=1e-10, atol=1e-12)
    padded_loss, padded = padded_gradient(objective, groups, truncated, torch.float64, overlong)
    assert loss == pytest.approx(padded_loss, rel=1e-6, abs=1e-7)
    assert (gradient - padded).norm() <= 1e-6 * padded.norm() + 1e-9


@pytest.mark.parametrize("config", CONFIGS, ids=str)
@pytest.mark.parametrize(("token_budget", "ranks"), [(1, 1), (16, 1), (30, 2), (30, 3), (1000, 3)])
def test_gradient_in_float32_is_within_1e_5_of_the_padded_form(
    config: dict[str, Any], token_budget: int, ranks: int
) -> None:
    objective = build_objective(config)
    groups = ragged_groups([[9, 0, 4, 1], [3, 7, 9, 2], [1, 1, 8, 5]], seed=11)
    _, gradient, _ = cut_gradient(
        objective,
        groups,
        every_sequence(groups),
        token_budget=token_budget,
        ranks=ranks,
        truncated="keep",
        dtype=torch.float32,
    )
    _, padded = padded_gradient(objective, groups, "keep", torch.float32)
    assert padded.norm() > 0.01
    assert (gradient - padded).norm() <= 1e-5 * padded.norm()


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_dummy_batch_adds_exactly_nothing(config: dict[str, Any]) -> None:
    objective = build_objective(config)
    model = TinyPolicy()
    loss = packed_loss(objective, model, dummy_batch(objective.config))
    assert loss.item() == 0
    assert (model.gradient_of(loss) == 0).all()


def test_group_with_equal_rewards_gets_zero_gradient() -> None:
    """The gradient is exactly zero, through model, packing and teacher."""
    groups = {"g": scored_group("g", [5, 3, 8], rewards=[1, 1, 1])}
    for config in ({"name": "trrd"}, {"name": "grpo"}):
        _, gradient, _ = cut_gradient(
            build_objective(config), groups, every_sequence(groups), token_budget=12, ranks=1, truncated="keep"
        )
        assert (gradient == 0).all()
