"""LoRA training under real DeepSpeed on real ranks, compared with dense plain PyTorch in float64."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
from deepspeed.runtime.zero.partition_parameters import GatheredParameters
from torch import Tensor
from transformers import AutoModelForCausalLM

from actors.engines.zero_engine.trainer import ZeroTrainer
from actors.engines.zero_engine.update_metrics import UpdateResult
from rlad.config.learner import LearnerConfig
from rlad.config.lora import LoraConfig
from rlad.errors import EngineError

from .learner_ranks import PLAIN, SHOW_GRADIENT, Plan, Ranks, shared_out, start_weights
from .learner_reference import LoraReferenceTrainer, make_groups, relative_error, response_logprobs, sequences_of

pytestmark = [pytest.mark.engine, pytest.mark.timeout(1800)]

MakeModel = Callable[..., Path]

LORA = LoraConfig(rank=4, alpha=8)
SCALE = 2.0


@dataclass(frozen=True)
class Snapshot:
    """Weights of a trainer, as seen by one rank.

    Attributes:
        published: Weights for the object store; None except on rank 0.
        adapters: Adapter weights; None except on rank 0.
        frozen: Frozen weights, by peft's names.
        walked: Weights yielded by the weight source.
        declared: Name, dtype and shape of each weight, as declared by the weight source.
    """

    published: dict[str, Tensor] | None
    adapters: dict[str, Tensor] | None
    frozen: dict[str, Tensor]
    walked: dict[str, Tensor]
    declared: list[tuple[str, torch.dtype, tuple[int, ...]]]


def snapshot(trainer: ZeroTrainer) -> Snapshot:
    frozen = {}
    for name, parameter in trainer._policy.causal_lm.named_parameters():
        with GatheredParameters([parameter], enabled=hasattr(parameter, "ds_id")):
            if not parameter.requires_grad:
                frozen[name] = parameter.detach().clone()
    weights = trainer.weight_source()
    return Snapshot(
        published=trainer.gather_weights(),
        adapters=trainer.gather_adapters(),
        frozen=frozen,
        walked={name: tensor.clone() for name, tensor in weights},
        declared=[(layout.name, layout.dtype, layout.shape) for layout in weights.layouts()],
    )


def run_with_snapshots(plan: Plan) -> tuple[Snapshot, list[UpdateResult], Snapshot]:
    """Run a plan on a rank. Return its results, with snapshots before and after."""
    trainer = plan.trainer()
    before = snapshot(trainer)
    results = [plan.run_update(trainer, update) for update in range(len(plan.updates))]
    return before, results, snapshot(trainer)


def merged(start: dict[str, Tensor], adapters: dict[str, Tensor], scale: float) -> dict[str, Tensor]:
    """Return W + scale B A in float64."""
    weights = {name: weight.double() for name, weight in start.items()}
    for name, a in adapters.items():
        if "lora_A" in name:
            b = adapters[name.replace("lora_A", "lora_B")]
            weights[name.removeprefix("base_model.model.").replace(".lora_A", "")] += scale * b.double() @ a.double()
    return weights


@pytest.mark.parametrize(("stage", "ranks"), [(0, 1), (0, 2), (1, 2), (2, 1), (2, 2), (3, 1), (3, 2)])
def test_adapter_training_matches_the_chain_rule_through_dense_weights(
    make_model: MakeModel, ranks_by_number: dict[int, Ranks], stage: int, ranks: int
) -> None:
    """Three updates. In the first only B has a gradient, since B is zero; after it both A and B have one.

    The frozen weights must not change by a single bit.
    """
    model_path = make_model(tied=stage % 2 == 0)
    groups = make_groups(model_path, count=3)
    optimizer = SHOW_GRADIENT.model_copy(update={"lr": 0.3, "max_gradient_norm": 0.5})
    config = LearnerConfig(zero_stage=stage, optimizer=optimizer, logprob_chunk_tokens=16, lora=LORA)
    sequences = sequences_of(groups)
    plan = Plan(
        model_path, groups, [shared_out(part, ranks, 2) for part in (sequences, sequences[:5], sequences[3:])], config
    )
    [(before, results, after), *others] = ranks_by_number[ranks].run(run_with_snapshots, plan)

    start = start_weights(model_path)
    assert list(before.published) == list(after.published) == list(start)
    assert all(torch.equal(before.published[name], start[name]) for name in start)
    assert {name.replace(".base_layer", "") for name in after.frozen} == start.keys()
    assert all(torch.equal(weight, start[name.replace(".base_layer", "")]) for name, weight in after.frozen.items())

    reference = LoraReferenceTrainer(model_path, optimizer, before.adapters, SCALE)
    expected = [reference.update(groups, part) for part in (sequences, sequences[:5], sequences[3:])]
    assert relative_error(after.adapters, reference.adapters, before.adapters) <= 1e-5
    assert [float(result.totals.loss) for result in results] == pytest.approx(
        [update.loss for update in expected], abs=1e-6
    )
    assert [result.gradient_norm for result in results] == pytest.approx(
        [update.gradient_norm for update in expected], rel=1e-5
    )
    moved = [name for name in after.adapters if not torch.equal(after.adapters[name], before.adapters[name])]
    assert len(moved) == len(after.adapters) == 2 * 7 * 2  # A and B of q, k, v, o, gate, up and down in two layers

    exact = merged(start, after.adapters, SCALE)
    for name, weight in after.published.items():
        torch.testing.assert_close(weight.double(), exact[name], rtol=1e-6, atol=1e-7)
    for seen in (after, *(last for *_, last in others)):
        assert seen.declared == [(name, weight.dtype, tuple(weight.shape)) for name, weight in start.items()]
        assert list(seen.walked) == list(start)
        assert all(torch.equal(seen.walked[name], after.published[name]) for name in start), (
            "transferred and published weights must be equal"
        )


def test_adapters_do_not_depend_on_the_number_of_ranks_or_the_stage(
    make_model: MakeModel, ranks_by_number: dict[int, Ranks]
) -> None:
    model_path = make_model(tied=False)
    groups = make_groups(model_path, count=3)
    found = {}
    for stage, ranks in ((0, 1), (2, 2), (3, 2)):
        updates = [shared_out(part, ranks, 2) for part in (sequences_of(groups), sequences_of(groups)[2:])]
        plan = Plan(model_path, groups, updates, LearnerConfig(zero_stage=stage, optimizer=PLAIN, lora=LORA))
        [found[stage], *_] = ranks_by_number[ranks].run(run_with_snapshots, plan)
    (alone_before, _, alone), *others = found.values()
    for before, _, after in others:
        assert all(torch.equal(before.adapters[name], alone_before.adapters[name]) for name in before.adapters)
        assert relative_error(after.adapters, alone.adapters, before.adapters) <= 1e-5


@pytest.mark.parametrize(
    "settings",
    [
        {"activation_checkpointing": True, "zero_stage": 2},
        {"activation_checkpointing": True, "zero_stage": 3},
        {"offload_optimizer": True, "zero_stage": 2},
        {"offload_optimizer": True, "zero_stage": 3},
    ],
)
def test_offload_and_activation_checkpointing_do_not_change_the_adapters(
    make_model: MakeModel, two_ranks: Ranks, settings: dict[str, Any]
) -> None:
    model_path = make_model(tied=True)
    groups = make_groups(model_path, count=3)
    updates = [shared_out(sequences_of(groups), 2, 2), shared_out(sequences_of(groups)[:5], 2, 1)]
    plain = LearnerConfig(zero_stage=settings["zero_stage"], optimizer=PLAIN, lora=LORA)
    [(before, _, expected), _] = two_ranks.run(run_with_snapshots, Plan(model_path, groups, updates, plain))
    [(_, _, found), _] = two_ranks.run(
        run_with_snapshots, Plan(model_path, groups, updates, plain.model_copy(update=settings))
    )
    assert relative_error(found.adapters, expected.adapters, before.adapters) <= 1e-5


@pytest.mark.parametrize("stage", [0, 2, 3])
def test_resuming_from_a_checkpoint_without_frozen_weights_gives_equal_results(
    make_model: MakeModel, two_ranks: Ranks, tmp_path: Path, stage: int
) -> None:
    model_path = make_model(tied=stage == 2)
    groups = make_groups(model_path, count=3)
    config = LearnerConfig(
        zero_stage=stage, optimizer=PLAIN.model_copy(update={"schedule": "cosine"}), lora=LoraConfig(rank=1)
    )
    plan = Plan(model_path, groups, [shared_out(sequences_of(groups), 2, 2)] * 4, config)
    [(_, _, expected), _] = two_ranks.run(run_with_snapshots, plan)
    [(found, dense_error), _] = two_ranks.run(run_interrupted, plan, tmp_path)
    assert all(torch.equal(found.published[name], expected.published[name]) for name in expected.published)
    assert all(torch.equal(found.adapters[name], expected.adapters[name]) for name in expected.adapters)
    assert dense_error == "EngineError"
    states = [torch.load(path, weights_only=False) for path in tmp_path.rglob("*model_states.pt")]
    assert all("lora_" in name for state in states for name in state["module"])
    written = sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file())
    assert written < 4 * sum(weight.numel() for weight in expected.frozen.values()) / 2


def run_interrupted(plan: Plan, directory: Path) -> tuple[Snapshot, str]:
    """Run half of the updates, save a checkpoint, and run the rest in a new trainer.

    Also return the type of the error that a trainer without adapters raises for the checkpoint.
    """
    first = plan.trainer()
    for update in (0, 1):
        plan.run_update(first, update)
    first.save(directory, {"step": 2})
    second = plan.trainer()
    assert second.load(directory) == {"step": 2}
    for update in (2, 3):
        plan.run_update(second, update)
    try:
        replace(plan, config=plan.config.model_copy(update={"lora": None})).trainer().load(directory)
    except EngineError as error:
        dense_error = type(error).__name__
    else:
        dense_error = "no error"
    return snapshot(second), dense_error


@pytest.mark.parametrize("stage", [2, 3])
def test_export_loads_in_transformers_and_its_adapter_loads_in_peft(
    make_model: MakeModel, two_ranks: Ranks, tmp_path: Path, stage: int
) -> None:
    model_path = make_model(tied=stage == 3)
    groups = make_groups(model_path, count=2)
    lora = LoraConfig(rank=2, alpha=5, target_modules=["q_proj", "mlp.down_proj"])
    config = LearnerConfig(zero_stage=stage, optimizer=SHOW_GRADIENT, lora=lora)
    plan = Plan(model_path, groups, [shared_out(sequences_of(groups), 2, 1)] * 2, config)
    [(published, logprobs), _] = two_ranks.run(run_and_export, plan, tmp_path / "export")

    student = AutoModelForCausalLM.from_pretrained(tmp_path / "export")
    exported = dict(student.named_parameters())
    assert published.keys() == exported.keys()
    assert all(torch.equal(published[name], exported[name]) for name in exported)
    changed = {
        name.split(".", 3)[3]
        for name, weight in start_weights(model_path).items()
        if not torch.equal(weight, exported[name])
    }
    assert changed == {"self_attn.q_proj.weight", "mlp.down_proj.weight"}

    adapted = peft.PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(model_path), tmp_path / "export" / "adapter"
    )
    assert adapted.peft_config["default"].base_model_name_or_path == "org/student"
    group = groups["g0"].group
    tokens = group.response_ids[group.response(0)]
    for model in (student, adapted):
        with torch.no_grad():
            expected = response_logprobs(model, group.prompt_ids, tokens, 1.0)
        torch.testing.assert_close(logprobs[len(group.prompt_ids) - 1 : -1], expected, rtol=0, atol=2e-5)


def run_and_export(plan: Plan, directory: Path) -> tuple[dict[str, Tensor] | None, Tensor]:
    """Run a plan on a rank and export the student.

    Return the published weights, and the log-probabilities of the first response of group g0 under them.
    """
    trainer = plan.trainer()
    for update in range(len(plan.updates)):
        plan.run_update(trainer, update)
    trainer.export(directory, base_model="org/student")
    batch, _ = plan.batch(0, [("g0", 0)])
    return trainer.gather_weights(), trainer.policy_logprobs(batch)


@pytest.mark.parametrize("stage", [2, 3])
def test_bfloat16_adapters_keep_small_updates_and_are_merged_with_one_rounding(
    make_model: MakeModel, two_ranks: Ranks, stage: int
) -> None:
    model_path = make_model(tied=True)
    groups = make_groups(model_path, count=2)
    # A's entries are about 0.1, where the spacing of bfloat16 is 5e-4. An update of 1e-4 needs float32 masters.
    optimizer = PLAIN.model_copy(update={"lr": 1e-4, "eps": 1e-8})
    config = LearnerConfig(zero_stage=stage, optimizer=optimizer, lora=LORA)
    plan = Plan(model_path, groups, [shared_out(sequences_of(groups), 2, 1)] * 12, config, dtype=torch.bfloat16)
    [(before, results, after), _] = two_ranks.run(run_with_snapshots, plan)
    assert all(result.applied for result in results)
    moved = {
        name: float((after.adapters[name] != before.adapters[name]).float().mean())
        for name in after.adapters
        if "lora_A" in name
    }
    assert min(moved.values()) > 0.5
    start = {name: weight.bfloat16() for name, weight in start_weights(model_path).items()}
    exact = merged(start, after.adapters, SCALE)
    for name, weight in after.published.items():
        assert weight.dtype == torch.bfloat16
        # Half a spacing of bfloat16, which has 8 significant bits.
        np.testing.assert_array_less((weight.double() - exact[name]).abs(), exact[name].abs() * 2**-8 * 1.01 + 1e-12)
