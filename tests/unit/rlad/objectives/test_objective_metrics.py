"""Values of the metrics, and their addition across micro-batches and ranks."""

from __future__ import annotations

import pytest
import torch

from rlad.errors import ContractError
from rlad.objectives import MetricSums, ObjectiveOutput, build_objective
from rlad.objectives.metrics import MeanSums, mean_over


def packed_output(config: dict[str, object], rows: list[tuple[float, float, float, float]]) -> ObjectiveOutput:
    """Return the output for rows of (log pi / pi_old, log pi / pi_T, advantage, weight)."""
    to_behaviour, to_teacher, advantages, weights = torch.tensor(rows, dtype=torch.float64).T
    policy = torch.full_like(weights, -2.0, requires_grad=True)
    return build_objective(config).packed(
        policy_logprobs=policy,
        behaviour_logprobs=-2.0 - to_behaviour,
        teacher_logprobs=-2.0 - to_teacher,
        advantages=advantages,
        weights=weights,
    )


ROWS = [
    (0.3, 1.5, 1.0, 0.1),  # log r 0.65: clipped, teacher log ratio clamped
    (-0.1, 0.1, 1.0, 0.2),
    (-0.2, -0.4, -2.0, 0.3),  # log r -0.3: clipped
    (0.4, -2.0, -2.0, 0.1),  # log r -0.3 because of the clamp: clipped
    (0.0, 0.2, -2.0, 0.1),
    (0.2, 0.0, 0.0, 0.1),  # advantage 0: counts in the means over all tokens
    (9.0, 9.0, 1.0, 0.0),  # weight 0: counts nowhere
]


def test_values_by_hand() -> None:
    metrics = packed_output({"name": "trrd"}, ROWS).metrics
    ratios = torch.tensor([0.65, 0.0, -0.3, -0.3, 0.1, 0.1], dtype=torch.float64).exp()
    assert metrics == pytest.approx(
        {
            "objective/clip_fraction": 3 / 6,
            "objective/clip_fraction_positive": 1 / 2,
            "objective/clip_fraction_negative": 2 / 3,
            "objective/ratio_mean": ratios.mean().item(),
            "objective/log_ratio_behaviour_mean": (0.3 - 0.1 - 0.2 + 0.4 + 0.0 + 0.2) / 6,
            "objective/log_ratio_behaviour_abs_mean": 1.2 / 6,
            "objective/log_ratio_teacher_mean": (1.5 + 0.1 - 0.4 - 2.0 + 0.2 + 0.0) / 6,
            "objective/log_ratio_teacher_abs_mean": 4.2 / 6,
            # log(pi_old / pi_T) is 1.2, 0.2 | -0.2, -2.4, 0.2: imitation agrees with A on the last one alone.
            "objective/teacher_disagreement_fraction": 4 / 5,
            "objective/teacher_clamp_fraction": 2 / 6,
            # (1 - alpha) log(pi_old / pi_T), clamped: 0.5, 0.1 | -0.1, -0.5, 0.1. Limits: ln 1.28 and ln 0.8.
            "objective/anchor_veto_fraction_positive": 1 / 2,
            "objective/anchor_veto_fraction_negative": 1 / 3,
            # Of the three clipped tokens, log(pi / pi_old) alone clips the first (0.3).
            "objective/anchor_clip_fraction": 2 / 6,
            "objective/behaviour_missing_tokens": 0,
            "objective/teacher_missing_tokens": 0,
        },
        abs=1e-12,
    )


def test_objective_without_a_teacher_has_no_teacher_metrics() -> None:
    for config in ({"name": "grpo"}, {"name": "trrd", "alpha": 1.0}):
        assert not [name for name in packed_output(config, ROWS).metrics if "teacher" in name]


@pytest.mark.parametrize("cut", range(len(ROWS) + 1))
def test_sums_of_parts_give_the_metrics_of_the_whole(cut: int) -> None:
    whole = packed_output({"name": "trrd"}, ROWS)
    # The learner adds micro-batches and reduces one flat tensor over ranks.
    shares = [packed_output({"name": "trrd"}, [*rows, ROWS[-1]]).sums for rows in (ROWS[:cut], ROWS[cut:])]
    reduced = shares[0].to_tensor() + shares[1].to_tensor()
    assert shares[0].from_tensor(reduced).means() == pytest.approx(whole.metrics, rel=1e-12)
    assert shares[0].add(shares[1]).means() == pytest.approx(whole.metrics, rel=1e-12)


def test_mean_over_zero_tokens_is_omitted() -> None:
    metrics = packed_output({"name": "trrd"}, ROWS[:2]).metrics
    assert "objective/clip_fraction_positive" in metrics
    assert "objective/clip_fraction_negative" not in metrics


def test_sums_carry_no_graph_and_their_tensor_is_a_copy() -> None:
    sums = packed_output({"name": "trrd"}, ROWS).sums
    before = sums.means()
    flat = sums.to_tensor()
    assert flat.dtype == torch.float64
    assert not flat.requires_grad
    flat.zero_()
    assert sums.means() == before


def test_sums_of_different_objectives_do_not_add() -> None:
    trrd, grpo = (packed_output({"name": name}, ROWS).sums for name in ("trrd", "grpo"))
    with pytest.raises(ContractError, match="expected the same names in the same order to add"):
        trrd.add(grpo)
    with pytest.raises(ContractError, match="expected 28 values"):
        trrd.from_tensor(grpo.to_tensor())


def test_totals_are_added_and_not_averaged() -> None:
    one, two = (MetricSums.of(means={}, totals={"missing": torch.tensor(count)}) for count in (3, 4))
    assert one.add(two).means() == {"missing": 7.0}


def test_sums_are_exact_beyond_the_integers_of_float32() -> None:
    """float32 holds no 2^24 + 1, neither as a sum of tokens nor as their number."""
    column = torch.tensor([2.0**24, 1.0, 9.0])
    found = mean_over(column, torch.tensor([True, True, False]))
    assert (found.total.item(), found.num_tokens.item()) == (2**24 + 1, 2)
    many = MeanSums(torch.tensor(2.0**24 + 1, dtype=torch.float64), torch.tensor(2**24 + 1))
    sums = MetricSums.of(means={"mean": many}, totals={"missing": torch.tensor(2**24 + 1)})
    assert sums.values.tolist() == [2**24 + 1] * 3


def test_dual_clipped_tokens_count_as_clipped() -> None:
    """A = -1: log ratio 2 is beyond ln 3 and has no gradient, log ratio 1 is not. A = +1: 2 is clipped as usual."""
    rows = [(2.0, 0.0, -1.0, 0.3), (1.0, 0.0, -1.0, 0.3), (2.0, 0.0, 1.0, 0.3)]
    metrics = packed_output({"name": "grpo", "dual_clip": 3.0}, rows).metrics
    assert (metrics["objective/clip_fraction_negative"], metrics["objective/clip_fraction_positive"]) == (0.5, 1.0)
    assert metrics["objective/clip_fraction"] == pytest.approx(2 / 3)


@pytest.mark.parametrize("config", [{"name": "opd"}, {"name": "kdrl", "estimator": "k1_reward"}], ids=str)
def test_teacher_divergence_of_the_reward_is_positive_where_the_student_is_likelier(config: dict[str, object]) -> None:
    """At pi = pi_old, log pi - log pi_T of 0.6 and -0.1 estimate a KL of 0.25."""
    metrics = packed_output(config, [(0.0, 0.6, 1.0, 0.5), (0.0, -0.1, 1.0, 0.5)]).metrics
    assert metrics["objective/teacher_kl"] == pytest.approx(0.25)
