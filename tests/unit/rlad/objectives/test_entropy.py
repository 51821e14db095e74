"""Entropy bonus: its sign, and the adaptive coefficient."""

from __future__ import annotations

import pytest
import torch

from rlad.objectives import EntropyBonus, EntropyController, Extras, build_objective


def test_bonus_increases_entropy_in_proportion_to_its_coefficient() -> None:
    """Two tokens in one response: d loss / d entropy = -coefficient / 2 each, for every advantage."""
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


def test_adaptive_coefficient_replaces_the_configured_one() -> None:
    logprobs = torch.zeros(1, 1)
    output = build_objective({"name": "grpo", "entropy_bonus": {"target": 0.5}})(
        policy_logprobs=logprobs,
        behaviour_logprobs=logprobs,
        advantages=torch.zeros(1),
        mask=torch.ones(1, 1),
        extras=Extras(entropies=torch.ones(1, 1), entropy_coefficient=0.3),
    )
    assert output.loss.item() == pytest.approx(-0.3)


def test_adaptive_coefficient_rises_below_the_target_and_is_zero_above_it() -> None:
    """Target 1, delta 0.1, start 0.1.

    Two entropies of 0.5 raise the level to 0.3. An entropy of 2 lowers it to 0.2 and disables the bonus. An entropy of
    0.9 enables it again at 0.3.
    """
    controller = EntropyController(EntropyBonus(coefficient=0.1, target=1.0, delta=0.1))
    seen = [controller.coefficient]
    for entropy in (0.5, 0.5, 2.0, 0.9):
        controller.observe(entropy)
        seen.append(controller.coefficient)
    assert seen == pytest.approx([0.1, 0.2, 0.3, 0.0, 0.3])


def test_adaptive_coefficient_is_never_negative() -> None:
    controller = EntropyController(EntropyBonus(target=1.0, delta=0.1))
    for _ in range(3):
        controller.observe(5.0)
    assert controller.level == 0.0
    controller.observe(0.5)
    assert controller.coefficient == pytest.approx(0.1)


def test_constant_coefficient_ignores_observed_entropies() -> None:
    controller = EntropyController(EntropyBonus(coefficient=0.1))
    controller.observe(0.0)
    assert controller.coefficient == 0.1


def test_restored_controller_continues_from_its_state() -> None:
    first, second = (EntropyController(EntropyBonus(target=1.0, delta=0.1)) for _ in range(2))
    first.observe(0.5)
    first.observe(3.0)
    second.restore(first.state())
    assert (second.coefficient, second.level) == (first.coefficient, first.level) == (0.0, 0.0)
    second.observe(0.2)
    assert second.coefficient == pytest.approx(0.1)


def test_entropy_exactly_at_the_target_keeps_the_bonus_and_lowers_the_level() -> None:
    """The bonus is off only above the target, and the level rises only below it (arXiv:2505.22312, section 4)."""
    controller = EntropyController(EntropyBonus(coefficient=0.3, target=1.0, delta=0.1))
    controller.observe(1.0)
    assert (controller.level, controller.coefficient) == pytest.approx((0.2, 0.2))


def test_adaptive_coefficient_stops_at_its_cap() -> None:
    """Delta 0.1 from 0.15: 0.25, then the cap of 0.3 twice; a high entropy lowers it from there."""
    controller = EntropyController(EntropyBonus(coefficient=0.15, target=1.0, delta=0.1, max_coefficient=0.3))
    seen = []
    for entropy in (0.5, 0.5, 0.5, 1.0):
        controller.observe(entropy)
        seen.append(controller.coefficient)
    assert seen == pytest.approx([0.25, 0.3, 0.3, 0.2])


def test_cap_is_fifty_deltas_unless_set() -> None:
    assert EntropyBonus(target=0.2, delta=0.0001).cap == pytest.approx(0.005)
    assert EntropyBonus(target=0.2, max_coefficient=0.01).cap == 0.01


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_coefficient": 0.1}, "max_coefficient requires target; got max_coefficient 0.1 and target null"),
        (
            {"target": 0.2, "coefficient": 0.3},
            "must not exceed its cap; got coefficient 0.3 and a cap of 0.25. Raise max_coefficient, or start lower",
        ),
    ],
)
def test_cap_that_cannot_hold_is_refused(settings: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EntropyBonus(**settings)
