"""Micro-batch plans, packed rows, and that the gradient does not depend on how a batch is cut."""

from __future__ import annotations

import inspect
import itertools
import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from rlad.advantages import OverlongPenalty, group_advantages, imitated_responses, shaped_rewards
from rlad.contracts import FinishReason, Outcome, RolloutGroup, ScoredGroup, TeacherScores, TrainingBatch, Verdicts
from rlad.errors import ContractError
from rlad.objectives import Extras, GrpoConfig, KdrlConfig, Objective, TrrdConfig, build_objective
from rlad.packing import BatchCounts, BatchRules, LossNormalizer, build_training_batch, dummy_batch, plan_microbatches

VOCABULARY, SUPPORT = 17, 3
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
    {"name": "sft"},
]
LENGTHS = st.lists(st.integers(1, 60), max_size=40)
thorough = settings(max_examples=300, derandomize=True, deadline=None)


def test_public_signatures_are_pinned() -> None:
    assert list(inspect.signature(plan_microbatches).parameters) == ["lengths", "token_budget", "ranks"]
    assert list(inspect.signature(build_training_batch).parameters) == ["groups", "sequences", "size", "rules"]
    assert list(inspect.signature(dummy_batch).parameters) == ["objective", "support_size"]


def rules(uses_teacher: bool, truncated: Literal["keep", "mask"]) -> BatchRules:
    return BatchRules(objective=TrrdConfig() if uses_teacher else GrpoConfig(), truncated=truncated)


@thorough
@given(LENGTHS, st.integers(1, 80), st.integers(1, 8))
def test_every_plan_is_sound(lengths: list[int], token_budget: int, ranks: int) -> None:
    plan = plan_microbatches(lengths, token_budget=token_budget, ranks=ranks)
    assert len(plan) == ranks
    assert len({len(batches) for batches in plan}) == 1
    rows = [row for batches in plan for row in batches]
    assert sorted(index for row in rows for index in row) == list(range(len(lengths)))
    assert all(row == sorted(row) for row in rows)
    for row in rows:
        assert len(row) <= 1 or sum(lengths[index] for index in row) <= token_budget
    # No two rows of best fit would go into one, so at most one of them is half empty or emptier.
    oversize = [length for length in lengths if length > token_budget]
    most = len(oversize) + 2 * (sum(lengths) - sum(oversize)) / token_budget + 1
    assert len(rows) <= math.ceil(most / ranks) * ranks
    totals = [sum(lengths[index] for row in batches for index in row) for batches in plan]
    assert max(totals) - min(totals) <= max([token_budget, *lengths])
    assert plan == plan_microbatches(lengths, token_budget=token_budget, ranks=ranks)


@thorough
@given(LENGTHS, st.integers(1, 80), st.integers(1, 8))
def test_micro_batches_that_run_at_once_are_the_most_similar(lengths: list[int], token_budget: int, ranks: int) -> None:
    """Ranks wait for the largest micro-batch of a round: no row of a later round is larger than any of an earlier one."""
    plan = plan_microbatches(lengths, token_budget=token_budget, ranks=ranks)
    rounds = [[sum(lengths[index] for index in row) for row in rows] for rows in zip(*plan, strict=True)]
    for earlier, later in itertools.pairwise(rounds):
        assert min(earlier) >= max(later)


@pytest.mark.parametrize(
    ("lengths", "token_budget", "ranks", "expected"),
    [
        ([], 10, 2, [[], []]),
        ([5], 10, 2, [[[0]], [[]]]),
        ([25, 3], 10, 1, [[[0], [1]]]),  # longer than the budget: a row of its own
        ([6, 6, 4, 4], 10, 1, [[[0, 2], [1, 3]]]),
        ([6, 6, 4, 4], 10, 2, [[[0, 2]], [[1, 3]]]),
        ([5, 5, 5, 5], 20, 2, [[[0, 2]], [[1, 3]]]),  # one row would do, but two ranks are there
        ([10, 8, 6, 4], 10, 2, [[[0], [3]], [[1], [2]]]),  # the rank that got less gets the larger one next
        ([7, 5, 3, 3, 2], 10, 1, [[[0, 3], [1, 2, 4]]]),
        ([6, 4, 4, 3, 3], 10, 1, [[[0, 1], [2, 3, 4]]]),  # evenly spread (6+3, 4+4) the last would not fit
    ],
)
def test_plans_by_hand(lengths: list[int], token_budget: int, ranks: int, expected: list[list[list[int]]]) -> None:
    assert plan_microbatches(lengths, token_budget=token_budget, ranks=ranks) == expected


def test_tokens_are_spread_evenly_over_ranks_and_rows() -> None:
    """256 responses of a wide spread of lengths: rows nearly full, ranks within 2% of each other."""
    lengths = np.random.default_rng(0).integers(50, 2000, size=256).tolist()
    plan = plan_microbatches(lengths, token_budget=16384, ranks=4)
    loads = np.array([[sum(lengths[index] for index in row) for row in batches] for batches in plan])
    assert loads.shape == (4, math.ceil(sum(lengths) / 16384 / 4))
    assert loads.max() / loads.min() < 1.02
    assert loads.sum(axis=1).max() / loads.sum(axis=1).min() < 1.02


@pytest.mark.parametrize("wrong", [{"token_budget": 0}, {"ranks": 0}, {"lengths": [3, 0]}])
def test_plan_arguments_below_one_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ContractError, match="at least 1"):
        plan_microbatches(**({"lengths": [1, 2], "token_budget": 8, "ranks": 1} | wrong))


def scored_group(
    uid: str,
    response_lengths: Sequence[int],
    *,
    prompt_tokens: int = 3,
    seed: int = 0,
    truncated: Sequence[int] = (),
    rewards: Sequence[float] | None = None,
    has_teacher: bool = True,
) -> ScoredGroup:
    """A group over a vocabulary of 17 whose log-probabilities are anywhere within 2 nats."""
    generator = np.random.default_rng(seed)
    size, num_tokens = len(response_lengths), sum(response_lengths)
    group = RolloutGroup(
        uid=uid,
        attempt=0,
        prompt_id=uid,
        task="test",
        answer="",
        temperature=1.0,
        prompt_ids=generator.integers(1, 17, prompt_tokens, dtype=np.int32),
        response_ids=generator.integers(1, 17, num_tokens, dtype=np.int32),
        response_offsets=np.cumsum([0, *response_lengths], dtype=np.int64),
        behaviour_logprobs=generator.uniform(-4, -2, num_tokens).astype(np.float32),
        policy_versions=np.zeros(num_tokens, dtype=np.int32),
        finish_reasons=np.array(
            [FinishReason.LENGTH if i in truncated else FinishReason.STOP for i in range(size)], dtype=np.uint8
        ),
    )
    rewards = generator.integers(0, 2, size).tolist() if rewards is None else rewards
    verdicts = Verdicts(
        uid=uid,
        attempt=0,
        rewards=np.array(rewards, dtype=np.float32),
        outcomes=np.full(size, Outcome.CORRECT, dtype=np.uint8),
        elapsed_s=np.zeros(size, dtype=np.float32),
    )
    logprobs = generator.uniform(-4, -2, num_tokens).astype(np.float32)
    likeliest = np.array(
        [generator.permutation(VOCABULARY)[: SUPPORT + 1] for _ in range(num_tokens)], dtype=np.int32
    ).reshape(-1, SUPPORT + 1)
    drawn = generator.normal(size=likeliest.shape)
    distribution = (drawn - np.log(np.exp(drawn).sum(axis=1, keepdims=True))).astype(np.float32)
    teacher = TeacherScores(
        uid=uid,
        attempt=0,
        teacher="teacher",
        logprobs=logprobs,
        support_size=SUPPORT,
        support_ids=likeliest[:, :SUPPORT].ravel(),
        support_logprobs=distribution[:, :SUPPORT].ravel(),
        tail_logprobs=distribution[:, SUPPORT].copy(),
    )
    reference = TeacherScores(
        uid=uid, attempt=0, teacher="reference", logprobs=generator.uniform(-4, -2, num_tokens).astype(np.float32)
    )
    return ScoredGroup(
        group=group, verdicts=verdicts, teacher_scores=teacher if has_teacher else None, reference_scores=reference
    )


def every_sequence(groups: dict[str, ScoredGroup]) -> list[tuple[str, int]]:
    return [(uid, index) for uid, scored in groups.items() for index in range(scored.group.num_responses)]


def test_row_by_hand() -> None:
    """Prompt of 2, responses of 2 and 1 tokens; a prompt's last position predicts the first response token."""
    scored = scored_group("g", [2, 0, 1], prompt_tokens=2, rewards=[1, 0, 0])
    group, teacher = scored.group, scored.teacher_scores
    (p0, p1), (r0, r1, r2) = group.prompt_ids.tolist(), group.response_ids.tolist()
    batch, counts = build_training_batch(
        {"g": scored}, [("g", 2), ("g", 0)], size=LossNormalizer(num_responses=4), rules=rules(True, "keep")
    )
    assert batch.token_ids.tolist() == [p0, p1, r2, p0, p1, r0, r1]
    assert batch.target_ids.tolist() == [p1, r2, 0, p1, r0, r1, 0]
    assert batch.position_ids.tolist() == [0, 1, 2, 0, 1, 2, 3]
    assert batch.sequence_offsets.tolist() == [0, 3, 7]
    b0, b1, b2 = group.behaviour_logprobs.tolist()
    assert batch.behaviour_logprobs.tolist() == [0, b2, 0, 0, b0, b1, 0]
    t0, t1, t2 = teacher.logprobs.tolist()
    assert batch.teacher_logprobs.tolist() == [0, t2, 0, 0, t0, t1, 0]
    assert batch.weights.tolist() == [0, 1 / 4, 0, 0, 1 / 8, 1 / 8, 0]
    best, other = (pytest.approx(value) for value in (math.sqrt(2), -math.sqrt(0.5)))
    assert batch.advantages.tolist() == [other] * 3 + [best] * 4
    assert counts == BatchCounts(responses=2, response_tokens=3, trained_tokens=3)


def test_missing_log_probabilities_leave_the_denominator() -> None:
    scored = scored_group("g", [4, 2], prompt_tokens=1, rewards=[1, 0])
    scored.teacher_scores.logprobs[[0, 2]] = [np.nan, -np.inf]
    scored.group.behaviour_logprobs[3] = -np.inf
    scored.teacher_scores.logprobs[4:] = np.nan
    batch, counts = build_training_batch(
        {"g": scored}, [("g", 0), ("g", 1)], size=LossNormalizer(num_responses=2), rules=rules(True, "keep")
    )
    assert batch.weights.tolist() == [0, 0.5, 0, 0, 0]  # and the second response, with no token left, takes no room
    assert counts == BatchCounts(
        responses=2, response_tokens=6, trained_tokens=1, missing_teacher_tokens=4, missing_behaviour_tokens=1
    )
    without, counts = build_training_batch(
        {"g": scored}, [("g", 0)], size=LossNormalizer(num_responses=2), rules=rules(False, "keep")
    )
    assert without.teacher_logprobs is None
    assert without.weights.tolist() == pytest.approx([1 / 6, 1 / 6, 1 / 6, 0, 0])
    assert counts == BatchCounts(responses=1, response_tokens=4, trained_tokens=3, missing_behaviour_tokens=1)


@pytest.mark.parametrize(("truncated", "weights"), [("keep", [0.25, 0.25, 0, 0.5, 0]), ("mask", [0.5, 0])])
def test_truncated_responses_are_counted_and_kept_or_masked(
    truncated: Literal["keep", "mask"], weights: list[float]
) -> None:
    scored = scored_group("g", [2, 1], prompt_tokens=1, truncated=[0])
    batch, counts = build_training_batch(
        {"g": scored}, [("g", 0), ("g", 1)], size=LossNormalizer(num_responses=2), rules=rules(True, truncated)
    )
    assert batch.weights.tolist() == weights
    trained = 3 if truncated == "keep" else 1
    assert counts == BatchCounts(responses=2, truncated_responses=1, response_tokens=3, trained_tokens=trained)


def test_counts_add() -> None:
    one = BatchCounts(
        responses=1,
        truncated_responses=2,
        response_tokens=3,
        trained_tokens=4,
        missing_teacher_tokens=5,
        missing_behaviour_tokens=6,
    )
    ten = BatchCounts(
        responses=10,
        truncated_responses=20,
        response_tokens=30,
        trained_tokens=40,
        missing_teacher_tokens=50,
        missing_behaviour_tokens=60,
    )
    assert one + ten == BatchCounts(
        responses=11,
        truncated_responses=22,
        response_tokens=33,
        trained_tokens=44,
        missing_teacher_tokens=55,
        missing_behaviour_tokens=66,
    )


@pytest.mark.parametrize("uses_teacher", [True, False])
def test_nothing_to_train_on_gives_the_dummy_batch(uses_teacher: bool) -> None:
    groups = {"g": scored_group("g", [0, 3], truncated=[1])}
    for sequences in ([], [("g", 0), ("g", 1)]):
        batch, _ = build_training_batch(
            groups, sequences, size=LossNormalizer(num_responses=2), rules=rules(uses_teacher, "mask")
        )
        assert (batch.token_ids.tolist(), batch.weights.tolist()) == ([0], [0.0])
        assert (batch.teacher_logprobs is not None) == uses_teacher


@pytest.mark.parametrize(
    ("sequences", "num_responses", "message"),
    [
        ([("other", 0)], 2, "group other, which is not among the 1 groups given"),
        ([("g", 2)], 2, "group g has 2 responses, no number 2"),
        ([("g", -1)], 2, "no number -1"),
        ([("g", 0), ("g", 1)], 1, "2 sequences, but num_responses of the whole step is 1"),
        ([("g", 0)], 2, "group g has no teacher scores"),
    ],
)
def test_sequences_that_do_not_fit_are_refused(
    sequences: list[tuple[str, int]], num_responses: int, message: str
) -> None:
    groups = {"g": scored_group("g", [2, 1], has_teacher="teacher" not in message)}
    with pytest.raises(ContractError, match=message):
        build_training_batch(
            groups, sequences, size=LossNormalizer(num_responses=num_responses), rules=rules(True, "keep")
        )


class TinyPolicy(nn.Module):
    """Distribution of the next token from the present one and its position: enough to see a row cut in the wrong place."""

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
    """Loss and gradient through the objective's padded form, one row a response, built token by token from the records."""
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
    said = model(ids, positions, targets, support_ids)
    extras = Extras(
        reference_logprobs=reference,
        entropies=said["entropies"],
        is_imitated=is_imitated,
        support_logprobs=said["support_logprobs"],
        teacher_support_logprobs=support,
        teacher_tail_logprobs=tail,
    )
    loss = objective(
        policy_logprobs=said["policy"],
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
    said = model(columns["token_ids"], columns["position_ids"], columns["target_ids"], ids)
    return objective.packed(
        policy_logprobs=said["policy"],
        behaviour_logprobs=columns["behaviour_logprobs"],
        teacher_logprobs=columns["teacher_logprobs"],
        advantages=columns["advantages"],
        weights=columns["weights"],
        extras=Extras(
            reference_logprobs=columns["reference_logprobs"],
            entropies=said["entropies"],
            is_imitated=columns["is_imitated"],
            support_logprobs=said["support_logprobs"],
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
    overlong: OverlongPenalty | None = None,
) -> tuple[float, Tensor, BatchCounts]:
    """Loss, gradient and counts summed over the ranks' micro-batches, as the learner sums them."""
    model = TinyPolicy().to(dtype)
    counted = [
        int(scored.group.response_lengths[index])
        for scored in groups.values()
        for index in range(scored.group.num_responses)
        if truncated == "keep" or not scored.group.is_truncated[index]
    ]
    size = LossNormalizer(num_responses=len(every_sequence(groups)), num_tokens=sum(counted) or 1)
    batch_rules = BatchRules(objective=objective.config, truncated=truncated, overlong=overlong)
    sequences = [(uid, index) for uid, index in sequences if groups[uid].group.response_lengths[index] > 0]
    lengths = [
        len(groups[uid].group.prompt_ids) + int(groups[uid].group.response_lengths[index]) for uid, index in sequences
    ]
    loss, counts = 0.0, BatchCounts()
    gradient = torch.zeros(sum(parameter.numel() for parameter in model.parameters()), dtype=dtype)
    for batches in plan_microbatches(lengths, token_budget=token_budget, ranks=ranks):
        for row in batches:
            batch, found = build_training_batch(groups, [sequences[i] for i in row], size=size, rules=batch_rules)
            part = packed_loss(objective, model, batch)
            loss, gradient, counts = loss + part.item(), gradient + model.gradient_of(part), counts + found
    return loss, gradient, counts


def ragged_groups(shapes: list[list[int]], seed: int) -> dict[str, ScoredGroup]:
    """Groups with empty and truncated responses and missing log-probabilities among them."""
    groups = {}
    for i, lengths in enumerate(shapes):
        scored = scored_group(f"g{i}", lengths, prompt_tokens=1 + i, seed=seed + i, truncated=[len(lengths) - 1])
        generator = np.random.default_rng(seed)
        scored.teacher_scores.logprobs[generator.random(sum(lengths)) < 0.15] = np.nan
        scored.group.behaviour_logprobs[generator.random(sum(lengths)) < 0.05] = -np.inf
        scored.reference_scores.logprobs[generator.random(sum(lengths)) < 0.05] = np.inf
        scored.teacher_scores.support_logprobs[generator.random(SUPPORT * sum(lengths)) < 0.02] = np.nan
        groups[f"g{i}"] = scored
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
    """Any order, micro-batch budget and number of ranks gives the gradient of one row, and of the padded form. The latter to 1e-6, since the rows'
    weights and advantages are float32."""
    objective, groups = build_objective(config), ragged_groups(shapes, seed)
    sequences = every_sequence(groups)
    shuffled = data.draw(st.permutations(sequences))
    loss, gradient, counts = cut_gradient(
        objective, groups, shuffled, token_budget=token_budget, ranks=ranks, truncated=truncated, overlong=overlong
    )
    whole_loss, whole_gradient, whole_counts = cut_gradient(
        objective, groups, sequences, token_budget=10**6, ranks=1, truncated=truncated, overlong=overlong
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
    """Exactly, through model, packing and teacher."""
    groups = {"g": scored_group("g", [5, 3, 8], rewards=[1, 1, 1])}
    for config in ({"name": "trrd"}, {"name": "grpo"}):
        _, gradient, _ = cut_gradient(
            build_objective(config), groups, every_sequence(groups), token_budget=12, ranks=1, truncated="keep"
        )
        assert (gradient == 0).all()


@pytest.mark.parametrize(
    ("aggregation", "weight"),
    [({"aggregation": "token_mean"}, 1 / 40), ({"aggregation": "fixed_length", "fixed_length": 5}, 1 / (4 * 5))],
    ids=str,
)
def test_weights_of_the_other_aggregations(aggregation: dict[str, Any], weight: float) -> None:
    scored = scored_group("g", [3, 1], prompt_tokens=1)
    batch, _ = build_training_batch(
        {"g": scored},
        [("g", 0), ("g", 1)],
        size=LossNormalizer(num_responses=4, num_tokens=40),
        rules=BatchRules(objective=GrpoConfig(**aggregation)),
    )
    assert batch.weights.tolist() == pytest.approx([weight, weight, weight, 0, weight, 0])


def test_a_mean_over_tokens_without_their_number_is_refused() -> None:
    rules = BatchRules(objective=GrpoConfig(aggregation="token_mean"))
    with pytest.raises(ContractError, match="needs the number of tokens of the whole step"):
        build_training_batch(
            {"g": scored_group("g", [3, 1])}, [("g", 0)], size=LossNormalizer(num_responses=4), rules=rules
        )


def test_support_and_reference_stand_where_the_token_is_predicted() -> None:
    scored = scored_group("g", [2], prompt_tokens=2, rewards=[1])
    teacher, reference = scored.teacher_scores, scored.reference_scores
    teacher.support_logprobs[SUPPORT] = np.nan  # of the second token: not valid
    objective = KdrlConfig(estimator="topk", top_k=SUPPORT, reference_kl=0.1, imitate="response")
    batch, counts = build_training_batch(
        {"g": scored}, [("g", 0)], size=LossNormalizer(num_responses=1), rules=BatchRules(objective=objective)
    )
    assert batch.support_size == SUPPORT
    assert batch.support_ids.reshape(-1, SUPPORT)[1].tolist() == teacher.support_ids[:SUPPORT].tolist()
    assert batch.teacher_support_logprobs.reshape(-1, SUPPORT).tolist() == [
        [0] * 3,
        teacher.support_logprobs[:SUPPORT].tolist(),
        [0] * 3,
        [0] * 3,
    ]
    assert batch.teacher_tail_logprobs.tolist() == [0, teacher.tail_logprobs[0], 0, 0]
    assert batch.reference_logprobs.tolist() == [0, reference.logprobs[0], 0, 0]
    assert batch.weights.tolist() == [0, 1, 0, 0]
    assert batch.is_imitated.tolist() == [False] * 4  # its reward says that it is right
    assert counts == BatchCounts(responses=1, response_tokens=2, trained_tokens=1, missing_teacher_tokens=1)


@pytest.mark.parametrize(
    ("objective", "message"),
    [
        (GrpoConfig(reference_kl=0.1), "group g has no reference scores, but the objective uses the reference"),
        (
            KdrlConfig(estimator="topk", top_k=2),
            "the teacher scores of group g have no support, but the objective asks for 2",
        ),
    ],
)
def test_scores_that_the_objective_needs_and_a_group_lacks_are_refused(objective: Any, message: str) -> None:
    whole = scored_group("g", [2])
    plain = TeacherScores(uid="g", attempt=0, teacher="t", logprobs=whole.teacher_scores.logprobs)
    scored = ScoredGroup(group=whole.group, verdicts=whole.verdicts, teacher_scores=plain)
    with pytest.raises(ContractError, match=message):
        build_training_batch(
            {"g": scored}, [("g", 0)], size=LossNormalizer(num_responses=1), rules=BatchRules(objective=objective)
        )
