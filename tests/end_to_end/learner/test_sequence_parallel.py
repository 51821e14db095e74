"""Ranks that share each row by DeepSpeed's Ulysses, on real process groups, compared with plain PyTorch in float64."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from actors.engines.zero_engine.update_metrics import learner_metrics
from rlad.config.learner import LearnerConfig
from rlad.errors import ConfigError
from rlad.objectives import build_objective

from .learner_ranks import PLAIN, SHOW_GRADIENT, Plan, Ranks, run_plan, shared_out, start_weights
from .learner_reference import (
    OTHER_OBJECTIVES,
    PaddedReference,
    ReferenceTrainer,
    make_groups,
    relative_error,
    sequences_of,
    with_supports,
)

pytestmark = [pytest.mark.engine, pytest.mark.timeout(1800)]

MakeModel = Callable[..., Path]


@pytest.mark.parametrize("micro_batches", [1, 5])
@pytest.mark.parametrize("stage", [0, 2, 3])
def test_gradient_and_metrics_of_two_ranks_that_share_rows_equal_those_of_one(
    make_model: MakeModel, ranks_by_number: dict[int, Ranks], stage: int, micro_batches: int
) -> None:
    model_path = make_model(tied=stage % 2 == 0)
    groups = make_groups(model_path, count=3)  # 9 sequences of 4 to 36 tokens, one of them empty
    reference = ReferenceTrainer(model_path, SHOW_GRADIENT)
    expected = reference.update(groups, sequences_of(groups))

    found, weights = {}, {}
    for ranks in (1, 2):
        config = LearnerConfig(
            ranks=ranks, sequence_parallel=ranks, zero_stage=stage, optimizer=SHOW_GRADIENT, logprob_chunk_tokens=16
        )
        plan = Plan(model_path, groups, [shared_out(sequences_of(groups), 1, micro_batches)], config)
        results = ranks_by_number[ranks].run(run_plan, plan)
        found[ranks], weights[ranks] = learner_metrics(results[0][0]), results[0][1]
        assert [learner_metrics(other) for other, _ in results] == [found[ranks]] * ranks

    start = start_weights(model_path)
    assert relative_error(weights[2], weights[1], start) <= 1e-5
    assert relative_error(weights[2], reference.weights(), start) <= 1e-5
    assert found[2] == pytest.approx(found[1], rel=1e-4, abs=1e-6)
    assert found[2]["learner/tokens"] == len(expected.gaps)
    assert found[2]["learner/micro_batches"] == micro_batches
    assert found[2]["learner/logprob_gap_max"] == pytest.approx(float(expected.gaps.max()), rel=1e-4)


@pytest.mark.parametrize("objective", OTHER_OBJECTIVES, ids=str)
def test_gradient_of_every_objective_matches_plain_pytorch(
    make_model: MakeModel, two_ranks: Ranks, objective: dict[str, Any]
) -> None:
    model_path = make_model(tied=False)
    groups = with_supports(model_path, make_groups(model_path, count=3))
    reference = PaddedReference(model_path, SHOW_GRADIENT)
    expected = reference.update(groups, build_objective(objective))
    config = LearnerConfig(
        ranks=2,
        sequence_parallel=2,
        zero_stage=2,
        optimizer=SHOW_GRADIENT,
        logprob_chunk_tokens=16,
        pi_old="recompute" if "mismatch" in objective else "rollout",
    )
    plan = Plan(model_path, groups, [shared_out(sequences_of(groups), 1, 2)], config, objective=objective)
    [([update], weights), _] = two_ranks.run(run_plan, plan)
    assert float(update.totals.loss) == pytest.approx(expected, abs=2e-6)
    assert relative_error(weights, reference.weights(), start_weights(model_path)) <= 1e-5


def test_shared_key_value_head_sliding_window_and_recomputed_activations_keep_the_gradient(
    gemma3_model: Path, two_ranks: Ranks
) -> None:
    """Two ranks share the only key-value head. Five of six layers attend to 16 tokens, and sequences are longer."""
    groups = make_groups(gemma3_model, count=3)
    reference = ReferenceTrainer(gemma3_model, SHOW_GRADIENT)
    reference.update(groups, sequences_of(groups))
    config = LearnerConfig(
        ranks=2, sequence_parallel=2, zero_stage=3, optimizer=SHOW_GRADIENT, activation_checkpointing=True
    )
    plan = Plan(gemma3_model, groups, [shared_out(sequences_of(groups), 1, 2)], config)
    [(_, weights), _] = two_ranks.run(run_plan, plan)
    assert relative_error(weights, reference.weights(), start_weights(gemma3_model)) <= 1e-5


def test_four_ranks_in_two_groups_train_different_rows(
    make_model: MakeModel, ranks_by_number: dict[int, Ranks]
) -> None:
    model_path = make_model(tied=True)
    groups = make_groups(model_path, count=3)
    sequences = sequences_of(groups)
    reference = ReferenceTrainer(model_path, PLAIN)
    for part in (sequences, sequences[:5]):
        reference.update(groups, part)
    config = LearnerConfig(ranks=4, sequence_parallel=2, zero_stage=2, optimizer=PLAIN)
    updates = [shared_out(sequences, 2, 2), shared_out(sequences[:5], 2, 1)]
    [([first, _], weights), *_] = ranks_by_number[4].run(run_plan, Plan(model_path, groups, updates, config))
    assert relative_error(weights, reference.weights(), start_weights(model_path)) <= 2e-5
    assert first.totals.micro_batches == 4
    assert first.totals.counts.responses == len(sequences)


def test_log_probabilities_of_a_row_are_gathered_from_its_slices(
    make_model: MakeModel, ranks_by_number: dict[int, Ranks]
) -> None:
    model_path = make_model(tied=True)
    groups = make_groups(model_path, count=2)
    found = {}
    for ranks in (1, 2):
        config = LearnerConfig(ranks=ranks, sequence_parallel=ranks)
        plan = Plan(model_path, groups, [[[sequences_of(groups)]]], config)
        found[ranks] = ranks_by_number[ranks].run(logprobs_of_rows, plan)
    expected = found[1][0]
    assert {len(row) % 2 for row in expected} == {0, 1}  # one row needs padding
    for rank in (0, 1):
        for row, other in zip(found[2][rank], expected, strict=True):
            torch.testing.assert_close(row, other, rtol=0, atol=1e-5)


def logprobs_of_rows(plan: Plan) -> list[Tensor]:
    trainer, [[[sequences]]] = plan.trainer(), plan.updates
    return [trainer.policy_logprobs(plan.batch(0, part)[0]) for part in (sequences, sequences[:2], sequences[2:3])]


def test_heads_that_the_ranks_cannot_share_are_refused_on_all_ranks(
    make_model: MakeModel, ranks_by_number: dict[int, Ranks]
) -> None:
    plan = Plan(make_model(tied=True), {}, [], LearnerConfig(ranks=4, sequence_parallel=4))
    assert (
        ranks_by_number[4].run(refusal, plan)
        == [
            "learner.sequence_parallel must divide the student's 2 attention heads, and divide its 2 key-value heads "
            "or be a multiple of them; got 4. Set it to one of 1, 2"
        ]
        * 4
    )


def refusal(plan: Plan) -> str:
    try:
        plan.trainer()
    except ConfigError as error:
        return str(error)
    return "none"
