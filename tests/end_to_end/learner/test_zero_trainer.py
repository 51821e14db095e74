"""Training engine under real DeepSpeed, on one and two ranks, compared with plain PyTorch in float64."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from actors.engines.zero_engine.update_metrics import UpdateResult, learner_metrics
from rlad.config.learner import LearnerConfig, OptimizerConfig
from rlad.errors import EngineError, NonFiniteGradientError, TeacherScoresError
from rlad.objectives import build_objective

from .learner_ranks import PLAIN, SHOW_GRADIENT, Plan, Ranks, run_plan, shared_out, start_weights
from .learner_reference import (
    OTHER_OBJECTIVES,
    PaddedReference,
    ReferenceTrainer,
    make_groups,
    relative_error,
    response_logprobs,
    sequences_of,
    with_hidden_states,
    with_supports,
)

pytestmark = [pytest.mark.engine, pytest.mark.timeout(1800)]

MakeModel = Callable[..., Path]


@pytest.mark.parametrize("micro_batches", [1, 5])
@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_gradient_does_not_depend_on_micro_batches_ranks_or_zero_stage(
    make_model: MakeModel, ranks_by_number: dict[int, Ranks], stage: int, ranks: int, micro_batches: int
) -> None:
    model_path = make_model(tied=stage % 2 == 0)
    groups = make_groups(model_path, count=3)  # 9 sequences; with 2 ranks of 5 micro-batches one micro-batch is a dummy
    reference = ReferenceTrainer(model_path, SHOW_GRADIENT)
    expected = reference.update(groups, sequences_of(groups))

    config = LearnerConfig(zero_stage=stage, optimizer=SHOW_GRADIENT, logprob_chunk_tokens=16)
    plan = Plan(model_path, groups, [shared_out(sequences_of(groups), ranks, micro_batches)], config)
    [(results, weights), *others] = ranks_by_number[ranks].run(run_plan, plan)

    assert relative_error(weights, reference.weights(), start_weights(model_path)) <= 1e-5
    assert [update.applied for update in results] == [True]
    metrics = learner_metrics(results)
    assert metrics["learner/loss"] == pytest.approx(expected.loss, abs=1e-6)
    assert metrics["learner/gradient_norm"] == pytest.approx(expected.gradient_norm, rel=1e-5)
    assert metrics["learner/logprob_gap_mean"] == pytest.approx(float(expected.gaps.mean()), rel=1e-4)
    assert metrics["learner/logprob_gap_max"] == pytest.approx(float(expected.gaps.max()), rel=1e-4)
    assert metrics["learner/tokens"] == len(expected.gaps)
    assert metrics["learner/micro_batches"] == ranks * micro_batches
    for other_results, other_weights in others:
        assert other_weights is None
        assert learner_metrics(other_results) == metrics


@pytest.mark.parametrize("stage", [0, 2, 3])
@pytest.mark.parametrize("objective", OTHER_OBJECTIVES, ids=str)
def test_gradient_of_every_objective_matches_plain_pytorch_on_two_ranks(
    make_model: MakeModel, two_ranks: Ranks, objective: dict[str, Any], stage: int
) -> None:
    """Compares model, output layer, packing and ZeRO with the padded form, one response at a time."""
    model_path = make_model(tied=False)
    groups = with_supports(model_path, make_groups(model_path, count=3))
    reference = PaddedReference(model_path, SHOW_GRADIENT)
    expected = reference.update(groups, build_objective(objective))
    config = LearnerConfig(
        zero_stage=stage,
        optimizer=SHOW_GRADIENT,
        logprob_chunk_tokens=16,
        pi_old="recompute" if "mismatch" in objective else "rollout",
    )
    for micro_batches in (1, 4):
        plan = Plan(
            model_path, groups, [shared_out(sequences_of(groups), 2, micro_batches)], config, objective=objective
        )
        [([update], weights), _] = two_ranks.run(run_plan, plan)
        assert float(update.totals.loss) == pytest.approx(expected, abs=2e-6)
        assert relative_error(weights, reference.weights(), start_weights(model_path)) <= 1e-5


@pytest.mark.parametrize("stage", [0, 3])
@pytest.mark.parametrize("objective", [OTHER_OBJECTIVES[2], {"name": "opd", "estimator": "full"}], ids=str)
def test_gradient_from_hidden_states_matches_plain_pytorch_on_two_ranks(
    make_model: MakeModel, two_ranks: Ranks, objective: dict[str, Any], stage: int
) -> None:
    model_path = make_model(tied=False)
    groups = with_supports(model_path, make_groups(model_path, count=3))
    reference = PaddedReference(model_path, SHOW_GRADIENT)
    expected = reference.update(groups, build_objective(objective))
    config = LearnerConfig(zero_stage=stage, optimizer=SHOW_GRADIENT, logprob_chunk_tokens=16)
    vocabulary = start_weights(model_path)["lm_head.weight"].shape[0]
    for micro_batches in (1, 5):  # with 5, one micro-batch is a dummy
        plan = Plan(
            model_path,
            with_hidden_states(groups),
            [shared_out(sequences_of(groups), 2, micro_batches)],
            config,
            objective=objective,
            teacher_weight=torch.eye(vocabulary),
        )
        [([update], weights), _] = two_ranks.run(run_plan, plan)
        assert float(update.totals.loss) == pytest.approx(expected, abs=2e-6)
        assert relative_error(weights, reference.weights(), start_weights(model_path)) <= 1e-5


@pytest.mark.parametrize("stage", [0, 2, 3])
def test_updates_of_changing_size_match_plain_adamw(make_model: MakeModel, two_ranks: Ranks, stage: int) -> None:
    model_path = make_model(tied=True)
    groups = make_groups(model_path, count=6, temperature=0.8)
    sequences = sequences_of(groups)
    cuts = [(sequences[:9], 1), (sequences[3:12], 4), (sequences[6:], 2), (sequences[:5], 3)]
    reference = ReferenceTrainer(model_path, PLAIN, temperature=0.8)
    for part, _ in cuts:
        reference.update(groups, part)

    config = LearnerConfig(zero_stage=stage, optimizer=PLAIN)
    plan = Plan(model_path, groups, [shared_out(part, 2, number) for part, number in cuts], config, temperature=0.8)
    [(_, weights), _] = two_ranks.run(run_plan, plan)
    assert relative_error(weights, reference.weights(), start_weights(model_path)) <= 2e-5


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_large_gradient_is_clipped_to_the_global_norm(make_model: MakeModel, two_ranks: Ranks, stage: int) -> None:
    model_path = make_model(tied=True)
    groups = make_groups(model_path, count=2)
    optimizer = SHOW_GRADIENT.model_copy(update={"max_gradient_norm": 0.01, "lr": 100.0})
    reference = ReferenceTrainer(model_path, optimizer)
    expected = reference.update(groups, sequences_of(groups))
    assert expected.gradient_norm > 0.05

    plan = Plan(
        model_path,
        groups,
        [shared_out(sequences_of(groups), 2, 1)],
        LearnerConfig(zero_stage=stage, optimizer=optimizer),
    )
    [([update], weights), _] = two_ranks.run(run_plan, plan)
    assert update.gradient_norm == pytest.approx(expected.gradient_norm, rel=1e-5)  # before clipping
    assert relative_error(weights, reference.weights(), start_weights(model_path)) <= 1e-5


@pytest.mark.parametrize(
    "settings",
    [
        {"offload_optimizer": True, "zero_stage": 2},
        {"offload_optimizer": True, "zero_stage": 3},
        {"activation_checkpointing": True, "zero_stage": 3},
    ],
)
def test_offload_and_activation_checkpointing_do_not_change_the_weights(
    make_model: MakeModel, two_ranks: Ranks, settings: dict[str, Any]
) -> None:
    model_path = make_model(tied=False)
    groups = make_groups(model_path, count=3)
    updates = [shared_out(sequences_of(groups), 2, 2), shared_out(sequences_of(groups)[:5], 2, 1)]
    plain = LearnerConfig(zero_stage=settings["zero_stage"], optimizer=PLAIN)
    [(_, expected), _] = two_ranks.run(run_plan, Plan(model_path, groups, updates, plain))
    [(_, found), _] = two_ranks.run(run_plan, Plan(model_path, groups, updates, plain.model_copy(update=settings)))
    # The tolerance for one gradient computed in two ways: an update changes a hundredth of a float32 weight, and the
    # rounding differs between processors.
    assert relative_error(found, expected, start_weights(model_path)) <= 1e-5


@pytest.mark.parametrize(
    "settings", [{"zero_stage": stage} for stage in (0, 1, 2, 3)] + [{"zero_stage": 2, "offload_optimizer": True}]
)
def test_update_with_an_infinite_gradient_on_one_rank_is_skipped_on_all(
    make_model: MakeModel, two_ranks: Ranks, settings: dict[str, Any]
) -> None:
    model_path = make_model(tied=True)
    groups = make_groups(model_path, count=3)
    update = shared_out(sequences_of(groups), 2, 2)
    config = LearnerConfig(optimizer=PLAIN.model_copy(update={"schedule": "linear"}), **settings)
    undisturbed = Plan(model_path, groups, [update, update], config)
    # The schedule has the length of the undisturbed run, so the learning rates must be equal too.
    [(expected_results, expected), _] = two_ranks.run(run_plan, undisturbed)
    results_by_rank = two_ranks.run(run_poisoned, replace(undisturbed, poisoned=[1]))
    for results, _ in results_by_rank:
        assert [result.applied for result in results] == [True, False, True]
        assert [result.lr for result in results] == pytest.approx([1e-3, 5e-4, 5e-4])
    assert [result.lr for result in expected_results] == pytest.approx([1e-3, 5e-4])
    assert relative_error(results_by_rank[0][1], expected, start_weights(model_path)) <= 1e-6


def run_poisoned(plan: Plan) -> tuple[list[UpdateResult], dict[str, Tensor] | None]:
    """Run the two updates of a plan on a rank, with a poisoned update between them."""
    trainer = plan.trainer()
    results = [
        plan.run_update(trainer, 0),
        plan.run_update(trainer, 1),
        replace(plan, poisoned=()).run_update(trainer, 1),
    ]
    return results, trainer.gather_weights()


def error_of_plan(plan: Plan) -> str:
    """Run a plan on a rank. Return its error, and whether the weights are still the initial ones."""
    trainer = plan.trainer()
    try:
        for update in range(len(plan.updates)):
            plan.run_update(trainer, update)
    except (NonFiniteGradientError, TeacherScoresError) as error:
        weights, start = trainer.gather_weights(), start_weights(plan.model_path)
        untouched = weights is None or all(torch.equal(weights[name], start[name]) for name in start)
        return f"{type(error).__name__} untouched={untouched}"
    return "no error"


def test_too_many_infinite_gradients_in_a_row_end_all_ranks(make_model: MakeModel, two_ranks: Ranks) -> None:
    model_path = make_model(tied=True)
    groups = make_groups(model_path, count=2)
    updates = [shared_out(sequences_of(groups), 2, 1)] * 3
    config = LearnerConfig(max_nonfinite_steps=2)
    assert (
        two_ranks.run(error_of_plan, Plan(model_path, groups, updates, config, poisoned=[0, 1]))
        == ["NonFiniteGradientError untouched=True"] * 2
    )
    assert two_ranks.run(error_of_plan, Plan(model_path, groups, updates, config, poisoned=[0, 2])) == ["no error"] * 2


def test_missing_teacher_scores_on_one_rank_end_all_ranks_before_the_update(
    make_model: MakeModel, two_ranks: Ranks
) -> None:
    model_path = make_model(tied=True)
    groups = make_groups(model_path, count=2)
    spoiled = groups["g1"].teacher_scores.logprobs
    spoiled[0] = np.nan
    tokens = sum(scored.group.num_tokens for scored in groups.values())
    update = [[sequences_of({"g0": groups["g0"]})], [sequences_of({"g1": groups["g1"]})]]
    strict, lenient = (LearnerConfig(max_missing_teacher_fraction=fraction / tokens) for fraction in (0.9, 1.1))
    assert (
        two_ranks.run(error_of_plan, Plan(model_path, groups, [[*update]], strict))
        == ["TeacherScoresError untouched=True"] * 2
    )
    [([result], _), _] = two_ranks.run(run_plan, Plan(model_path, groups, [[*update]], lenient))
    assert result.totals.counts.missing_teacher_tokens == 1
    assert result.totals.counts.trained_tokens == tokens - 1


@pytest.mark.parametrize("stage", [0, 2, 3])
def test_resuming_from_a_checkpoint_gives_equal_results(
    make_model: MakeModel, two_ranks: Ranks, tmp_path: Path, stage: int
) -> None:
    model_path = make_model(tied=stage == 2)
    groups = make_groups(model_path, count=3)
    update = shared_out(sequences_of(groups), 2, 2)
    config = LearnerConfig(
        zero_stage=stage, optimizer=PLAIN.model_copy(update={"schedule": "cosine", "warmup_steps": 1})
    )
    plan = Plan(model_path, groups, [update] * 4, config)
    [(expected_results, expected), _] = two_ranks.run(run_plan, plan)
    [(results, weights, state), (_, _, other_state)] = two_ranks.run(run_interrupted, plan, tmp_path)
    assert state == other_state == {"step": 2}
    assert [learner_metrics([result]) for result in results] == [
        learner_metrics([result]) for result in expected_results
    ]
    assert all(torch.equal(weights[name], expected[name]) for name in expected)


def run_interrupted(plan: Plan, directory: Path) -> tuple[list[UpdateResult], dict[str, Tensor] | None, dict[str, Any]]:
    """Run half of the updates on a rank, save a checkpoint, and run the rest in a new trainer."""
    first = plan.trainer()
    results = [plan.run_update(first, update) for update in (0, 1)]
    first.save(directory, {"step": 2})
    second = plan.trainer()
    state = second.load(directory)
    results += [plan.run_update(second, update) for update in (2, 3)]
    return results, second.gather_weights(), state


@pytest.mark.parametrize("stage", [2, 3])
@pytest.mark.parametrize("tied", [True, False])
def test_exported_model_loads_in_transformers_with_the_trained_weights(
    make_model: MakeModel, two_ranks: Ranks, tmp_path: Path, tied: bool, stage: int
) -> None:
    model_path = make_model(tied=tied)
    groups = make_groups(model_path, count=2)
    plan = Plan(
        model_path, groups, [shared_out(sequences_of(groups), 2, 1)], LearnerConfig(zero_stage=stage, optimizer=PLAIN)
    )
    export = tmp_path / "export"
    [(weights, logprobs), _] = two_ranks.run(run_and_export, plan, export)
    [(_, _), _] = two_ranks.run(run_and_export, plan, export)  # an older export is replaced
    assert [path.name for path in tmp_path.iterdir()] == ["export"]

    model = AutoModelForCausalLM.from_pretrained(export)
    exported = dict(model.named_parameters())
    assert weights.keys() == exported.keys()
    assert all(torch.equal(weights[name], exported[name]) for name in exported)
    assert not torch.equal(exported["model.norm.weight"], start_weights(model_path)["model.norm.weight"])
    assert model.config.tie_word_embeddings == tied
    assert AutoTokenizer.from_pretrained(export).get_vocab() == AutoTokenizer.from_pretrained(model_path).get_vocab()
    group = groups["g0"].group
    tokens = group.response_ids[group.response(0)]
    with torch.no_grad():
        expected = response_logprobs(model, group.prompt_ids, tokens, 1.0)
    torch.testing.assert_close(logprobs[len(group.prompt_ids) - 1 : -1], expected, rtol=0, atol=1e-5)


def run_and_export(plan: Plan, directory: Path) -> tuple[dict[str, Tensor] | None, Tensor]:
    """Run a plan and export. Return the weights, and the log-probabilities of the first response of group g0."""
    trainer = plan.trainer()
    for update in range(len(plan.updates)):
        plan.run_update(trainer, update)
    trainer.export(directory)
    batch, _ = plan.batch(0, [("g0", 0)])
    return trainer.gather_weights(), trainer.policy_logprobs(batch)


def test_recomputed_pi_old_makes_the_first_ratio_one(make_model: MakeModel, two_ranks: Ranks) -> None:
    model_path = make_model(tied=True)
    groups = make_groups(model_path, count=2)
    metrics = {}
    for pi_old in ("rollout", "recompute"):
        plan = Plan(model_path, groups, [shared_out(sequences_of(groups), 2, 1)], LearnerConfig(pi_old=pi_old))
        [(results, _), _] = two_ranks.run(run_plan, plan)
        metrics[pi_old] = learner_metrics(results)
    assert metrics["recompute"]["objective/log_ratio_behaviour_abs_mean"] == 0
    assert metrics["rollout"]["objective/log_ratio_behaviour_abs_mean"] > 0.1
    assert metrics["recompute"]["learner/logprob_gap_mean"] == metrics["rollout"]["learner/logprob_gap_mean"]


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_bfloat16_weights_are_trained_with_float32_masters(make_model: MakeModel, two_ranks: Ranks, stage: int) -> None:
    model_path = make_model(tied=True)
    groups = make_groups(model_path, count=3)
    # Each update is below 5e-4, half of the spacing of bfloat16 at a weight of 0.2. Without masters all would be lost.
    optimizer = OptimizerConfig(lr=2e-4)
    updates = [shared_out(sequences_of(groups), 2, 1)] * 12
    config = LearnerConfig(zero_stage=stage, optimizer=optimizer, max_nonfinite_steps=1)
    [(exact_results, exact), _] = two_ranks.run(run_plan, Plan(model_path, groups, updates, config))
    [(results, weights), _] = two_ranks.run(run_plan, Plan(model_path, groups, updates, config, dtype=torch.bfloat16))
    assert {weight.dtype for weight in weights.values()} == {torch.bfloat16}
    assert results[0].gradient_norm == pytest.approx(exact_results[0].gradient_norm, rel=0.05)
    assert relative_error(weights, exact, start_weights(model_path)) < 0.6
    assert float(results[-1].totals.loss) == pytest.approx(float(exact_results[-1].totals.loss), abs=0.02)


def test_trainer_refuses_a_device_other_than_the_configured_one(make_model: Callable[..., Path]) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU, so a rank that asks for one gets it")
    plan = Plan(make_model(), {}, [], LearnerConfig(gpus_per_rank=1))
    with pytest.raises(EngineError, match="gpus_per_rank is 1, but DeepSpeed's device is cpu: no GPU is visible"):
        plan.trainer()
