"""The entropy bonus: its sign, and the coefficient that is steered towards a target."""

from __future__ import annotations

import pytest
import torch

from rlad.objectives import EntropyBonus, EntropyController, Extras, build_objective


def test_the_bonus_pulls_entropy_up_by_its_coefficient() -> None:
    """Two tokens in one response: d loss / d entropy = -coefficient / 2 each, whatever the advantage."""
    entropies = torch.tensor([[0.3, 1.1]], dtype=torch.float64, requires_grad=True)
    logprobs, objective = (
        torch.zeros(1, 2, dtype=torch.float64),
        build_objective({"name": "grpo", "entropy_bonus": {"coefficient": 0.2}}),
    )
    output = objective(
        policy_logprobs=logprobs,
        behaviour_logprobs=logprobs,
        advantages=torch.zeros(1),
        mask=torch.ones(1, 2),
        extras=Extras(entropies=entropies),
    )
    output.loss.backward()
    assert output.loss.item() == pytest.approx(-0.2 * 0.7)
    assert entropies.grad.tolist() == [[-0.1, -0.1]]
    assert output.metrics["objective/entropy"] == pytest.approx(0.7)


def test_a_given_coefficient_takes_the_configured_ones_place() -> None:
    logprobs = torch.zeros(1, 1)
    output = build_objective({"name": "grpo", "entropy_bonus": {"target": 0.5}})(
        policy_logprobs=logprobs,
        behaviour_logprobs=logprobs,
        advantages=torch.zeros(1),
        mask=torch.ones(1, 1),
        extras=Extras(entropies=torch.ones(1, 1), entropy_coefficient=0.3),
    )
    assert output.loss.item() == pytest.approx(-0.3)


def test_an_adaptive_coefficient_rises_below_the_target_falls_above_it_and_is_off_there() -> None:
    """Target 1, delta 0.1, from 0.1: entropies 0.5, 0.5 raise it to 0.3; 2 lowers it to 0.2 and turns it off; 0.9 turns it on again, at 0.3."""
    controller = EntropyController(EntropyBonus(coefficient=0.1, target=1.0, delta=0.1))
    seen = [controller.coefficient]
    for entropy in (0.5, 0.5, 2.0, 0.9):
        controller.observe(entropy)
        seen.append(controller.coefficient)
    assert seen == pytest.approx([0.1, 0.2, 0.3, 0.0, 0.3])


def test_it_never_falls_below_zero() -> None:
    controller = EntropyController(EntropyBonus(target=1.0, delta=0.1))
    for _ in range(3):
        controller.observe(5.0)
    assert controller.level == 0.0
    controller.observe(0.5)
    assert controller.coefficient == pytest.approx(0.1)


def test_a_constant_coefficient_stays_whatever_is_observed() -> None:
    controller = EntropyController(EntropyBonus(coefficient=0.1))
    controller.observe(0.0)
    assert controller.coefficient == 0.1


def test_a_restored_controller_goes_on_where_it_was() -> None:
    first, second = (EntropyController(EntropyBonus(target=1.0, delta=0.1)) for _ in range(2))
    first.observe(0.5)
    first.observe(3.0)
    second.restore(first.state())
    assert (second.coefficient, second.level) == (first.coefficient, first.level) == (0.0, 0.0)
    second.observe(0.2)
    assert second.coefficient == pytest.approx(0.1)
