"""Metrics of a step, from the results of its updates."""

from __future__ import annotations

import pytest
import torch

from actors.engines.zero_engine.update_metrics import UpdateResult, UpdateTotals, learner_metrics
from rlad.objectives import MetricSums
from rlad.objectives.metrics import MeanSums
from rlad.packing import BatchCounts


def update(
    *,
    loss: float,
    ratio_sum: float,
    tokens: int,
    gap_sum: float,
    gap_max: float,
    norm: float,
    lr: float = 1.0,
    applied: bool = True,
) -> UpdateResult:
    sums = MetricSums.of(
        means={"objective/ratio_mean": MeanSums(torch.tensor(ratio_sum), torch.tensor(tokens))}, totals={}
    )
    totals = UpdateTotals(
        sums=sums,
        loss=torch.tensor(loss),
        gap_sum=torch.tensor(gap_sum),
        gap_max=torch.tensor(gap_max),
        counts=BatchCounts(responses=2, response_tokens=tokens + 1, trained_tokens=tokens, missing_teacher_tokens=1),
        micro_batches=3,
    )
    return UpdateResult(applied=applied, gradient_norm=norm, lr=lr, entropy_coefficient=0.0, totals=totals)


def test_means_cover_the_tokens_of_all_updates_and_the_gap_only_the_first() -> None:
    first = update(loss=0.5, ratio_sum=2.0, tokens=2, gap_sum=0.25, gap_max=0.1875, norm=3.0)
    second = update(loss=1.5, ratio_sum=9.0, tokens=6, gap_sum=60.0, gap_max=50.0, norm=1.0, lr=0.5)
    assert learner_metrics([first, second]) == pytest.approx(
        {
            "learner/loss": 1.0,
            "learner/gradient_norm": 2.0,
            "learner/lr": 0.5,
            "learner/updates": 2,
            "learner/nonfinite_updates": 0,
            "learner/micro_batches": 6,
            "learner/tokens": 8,
            "learner/missing_teacher_tokens": 2,
            "learner/missing_reference_tokens": 0,
            "learner/missing_behaviour_tokens": 0,
            "learner/entropy_coefficient": 0.0,
            "learner/logprob_gap_mean": 0.125,
            "learner/logprob_gap_max": 0.1875,
            "objective/ratio_mean": 11 / 8,
        }
    )


def test_metrics_by_pass_cover_the_updates_of_their_pass() -> None:
    """Two passes of two updates: ratios 2 / 2 and 9 / 6, then 4 / 2 and 12 / 6; the last update is not applied."""
    updates = [
        update(loss=0.5, ratio_sum=2.0, tokens=2, gap_sum=0.25, gap_max=0.1875, norm=3.0),
        update(loss=1.5, ratio_sum=9.0, tokens=6, gap_sum=60.0, gap_max=50.0, norm=1.0),
        update(loss=0.5, ratio_sum=4.0, tokens=2, gap_sum=60.0, gap_max=50.0, norm=5.0),
        update(loss=0.5, ratio_sum=12.0, tokens=6, gap_sum=60.0, gap_max=50.0, norm=float("inf"), applied=False),
    ]
    metrics = learner_metrics(updates, passes=2)
    assert {name: value for name, value in metrics.items() if "_pass_" in name} == pytest.approx(
        {
            "objective/ratio_mean_pass_1": 11 / 8,
            "objective/ratio_mean_pass_2": 16 / 8,
            "learner/gradient_norm_pass_1": 2.0,
            "learner/gradient_norm_pass_2": 5.0,
        }
    )
    assert metrics["objective/ratio_mean"] == pytest.approx(27 / 16)
    assert (metrics["learner/tokens"], metrics["learner/updates"]) == (16, 4)
    assert metrics["learner/logprob_gap_max"] == pytest.approx(0.1875)  # of the first update only
    assert not [name for name in learner_metrics(updates) if "_pass_" in name]


def test_skipped_update_is_counted_but_excluded_from_the_means() -> None:
    good = update(loss=0.5, ratio_sum=2.0, tokens=2, gap_sum=0.25, gap_max=0.1875, norm=3.0)
    bad = update(loss=float("inf"), ratio_sum=2.0, tokens=2, gap_sum=0.0, gap_max=0.0, norm=float("inf"), applied=False)
    metrics = learner_metrics([good, bad])
    assert (metrics["learner/loss"], metrics["learner/gradient_norm"], metrics["learner/nonfinite_updates"]) == (
        0.5,
        3.0,
        1,
    )
    assert learner_metrics([bad]).keys().isdisjoint({"learner/loss", "learner/gradient_norm"})


def test_step_without_trained_tokens_has_no_gap() -> None:
    nothing = update(loss=0.0, ratio_sum=0.0, tokens=0, gap_sum=0.0, gap_max=0.0, norm=0.0)
    assert (
        learner_metrics([nothing])
        .keys()
        .isdisjoint({"learner/logprob_gap_mean", "learner/logprob_gap_max", "objective/ratio_mean"})
    )


def test_micro_batches_add_up_but_the_largest_gap_is_a_maximum() -> None:
    whole = update(loss=0.5, ratio_sum=2.0, tokens=2, gap_sum=0.25, gap_max=0.1875, norm=3.0).totals
    whole.add(update(loss=0.25, ratio_sum=9.0, tokens=6, gap_sum=0.5, gap_max=0.125, norm=1.0).totals)
    assert (whole.loss.item(), whole.gap_sum.item(), whole.gap_max.item(), whole.micro_batches) == (
        0.75,
        0.75,
        0.1875,
        6,
    )
    assert whole.counts.trained_tokens == 8
    assert whole.sums.means() == {"objective/ratio_mean": 11 / 8}
    whole.add(update(loss=0.0, ratio_sum=0.0, tokens=1, gap_sum=0.0, gap_max=0.5, norm=0.0).totals)
    assert whole.gap_max.item() == 0.5
