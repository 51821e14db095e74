"""GRPO equals the released TRL's `_compute_loss` on the same tensors.

The TRL trainer is a stand-in with only the settings that the method reads.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from rlad.objectives import build_objective

from .slow_reference import Padded, ragged_batch

trl = pytest.importorskip(
    "trl.trainer.grpo_trainer", reason="TRL is in the test environment only: pip install -e '.[dev]'"
)

LENGTHS = [7, 1, 4, 9]


def trl_loss(
    batch: Padded,
    policy: Tensor,
    *,
    loss_type: str,
    beta: float = 0.0,
    delta: float | None = None,
    cap: float | None = None,
) -> Tensor:
    """Return the loss of TRL's GRPOTrainer, with log-probabilities that replace its forward pass."""
    mask = batch.mask.to(policy.dtype)
    trainer = SimpleNamespace(
        _get_per_token_logps_and_entropies=lambda *_, **__: (policy, torch.zeros_like(policy), None),
        accelerator=SimpleNamespace(
            num_processes=1, gather=lambda value: value, reduce=lambda value, reduction: value, sync_gradients=True
        ),
        args=SimpleNamespace(delta=delta, use_bias_correction_kl=False, steps_per_generation=1),
        model=SimpleNamespace(training=True),
        current_gradient_accumulation_steps=1,
        loss_type=loss_type,
        max_completion_length=12,
        beta=beta,
        epsilon_low=0.2,
        epsilon_high=0.28,
        importance_sampling_level="token",
        top_entropy_quantile=1.0,
        off_policy_mask_threshold=None,
        aux_loss_enabled=False,
        use_vllm=cap is not None,
        vllm_importance_sampling_correction=cap is not None,
        _entropy_bonus_enabled=False,
        _metrics={"train": defaultdict(list)},
    )
    inputs = {
        "prompt_ids": torch.zeros(len(LENGTHS), 1, dtype=torch.int64),
        "prompt_mask": torch.ones(len(LENGTHS), 1, dtype=torch.int64),
        "completion_ids": torch.zeros(batch.mask.shape, dtype=torch.int64),
        "completion_mask": mask,
        "advantages": batch.advantages,
        "old_per_token_logps": batch.behaviour,
        "ref_per_token_logps": batch.extras.reference_logprobs,
        "num_items_in_batch": mask.sum(),
    }
    if cap is not None:
        inputs["importance_sampling_ratio"] = torch.exp(batch.behaviour - batch.extras.sampler_logprobs).clamp(max=cap)
        inputs["sampling_per_token_logps"] = batch.extras.sampler_logprobs
    loss: Tensor = trl.GRPOTrainer._compute_loss(trainer, None, inputs)
    return loss


@pytest.mark.parametrize(
    ("loss_type", "aggregation"),
    [
        ("grpo", {}),
        ("bnpo", {"aggregation": "token_mean"}),
        ("dapo", {"aggregation": "token_mean"}),
        ("dr_grpo", {"aggregation": "fixed_length", "fixed_length": 12}),
    ],
    ids=str,
)
@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ({}, {}),
        ({"beta": 0.3}, {"reference_kl": 0.3, "reference_kl_estimator": "k3"}),
        ({"delta": 1.6}, {"dual_clip": 1.6}),
        ({"cap": 1.5}, {"mismatch": "truncate", "mismatch_cap": 1.5}),
    ],
    ids=str,
)
@pytest.mark.parametrize("seed", range(3))
def test_grpo_equals_trl(
    loss_type: str, aggregation: dict[str, Any], theirs: dict[str, float], ours: dict[str, Any], seed: int
) -> None:
    batch = ragged_batch(LENGTHS, seed)
    policy, their_policy = (batch.policy.clone().requires_grad_() for _ in range(2))
    loss = build_objective({"name": "grpo", **aggregation, **ours})(
        **batch.arguments(policy=policy, with_teacher=False)
    ).loss
    their_loss = trl_loss(batch, their_policy, loss_type=loss_type, **theirs)
    loss.backward()
    their_loss.backward()
    assert loss.item() == pytest.approx(their_loss.item(), rel=1e-9, abs=1e-12)
    torch.testing.assert_close(policy.grad, their_policy.grad, rtol=1e-9, atol=1e-12)


def test_grpo_equals_trl_in_float32() -> None:
    exact = ragged_batch(LENGTHS, seed=4)
    columns = {name: getattr(exact, name).float() for name in ("policy", "behaviour", "teacher", "advantages")}
    batch = replace(exact, **columns)
    policy = batch.policy.clone().requires_grad_()
    loss = build_objective({"name": "grpo"})(**batch.arguments(policy=policy, with_teacher=False)).loss
    their_loss = trl_loss(batch, batch.policy.clone().requires_grad_(), loss_type="grpo")
    assert loss.dtype == their_loss.dtype == torch.float32
    assert loss.item() == pytest.approx(their_loss.item(), rel=1e-6)
