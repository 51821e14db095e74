"""Spreads, costs and significance of a comparison, with expected values computed by hand."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from rlad.errors import ContractError
from rlad.evaluation.accuracy import EvaluationSummary, PromptResult, summarise
from rlad.evaluation.comparison import (
    RunRecord,
    accuracy_spreads,
    areas,
    costs,
    curves,
    differences,
    holm,
    metric_curves,
    p_text,
    paired_t,
    sign_permutation,
)
from rlad.evaluation.learning_curve import area_under


def evaluation(rewards: Sequence[float], *, first_prompt: int = 0) -> EvaluationSummary:
    """Evaluation with one response per prompt; the first half of the prompts has 2 people, the others 3."""
    return summarise(
        [
            PromptResult(
                prompt_id=f"p{first_prompt + index}",
                groups=("2" if index < len(rewards) / 2 else "3",),
                rewards=(reward,),
                response_tokens=(9,),
                num_truncated=0,
            )
            for index, reward in enumerate(rewards)
        ]
    )


def run(
    method: str, seed: int, final: Sequence[float], *, start: Sequence[float] | None = None, teacher: bool = False
) -> RunRecord:
    steps = [
        {
            "step": step,
            "reward/mean": step / 10,
            "rollout/response_tokens": 100.0 * step,
            "time/step_s": 2.0 + seed,
            "time/score_s": 0.5,
        }
        for step in (1, 2)
    ]
    evaluations = {0: evaluation(start or [0.0] * len(final)), 2: evaluation(final)}
    return RunRecord(method=method, seed=seed, steps=steps, evaluations=evaluations, uses_teacher=teacher)


def test_table_has_mean_and_standard_deviation_over_seeds() -> None:
    table = accuracy_spreads(
        [
            run("a", 0, [1, 1, 1, 0]),
            run("a", 1, [1, 0, 0, 0]),
            run("b", 0, [0, 0, 0, 0]),
            run("b", 1, [0, 0, 0, 0], start=[1, 1, 0, 0]),
        ]
    )
    assert list(table) == ["start", "a", "b"]
    assert list(table["a"]) == ["2", "3", "all"]
    assert (table["a"]["2"].mean, table["a"]["2"].sd) == pytest.approx((0.75, 0.5 / 2**0.5))  # 1 and 0.5
    assert (table["a"]["all"].mean, table["a"]["all"].sd) == pytest.approx((0.5, 0.5 / 2**0.5))
    assert (table["b"]["all"].mean, table["b"]["all"].sd) == (0.0, 0.0)
    assert accuracy_spreads([run("a", 0, [1, 0])])["a"]["all"].sd is None


def test_curves_contain_steps_common_to_all_seeds() -> None:
    short = RunRecord(
        method="a",
        seed=1,
        steps=[{"step": 1, "reward/mean": 0.3}],
        evaluations={0: evaluation([0, 0])},
        uses_teacher=False,
    )
    runs = [run("a", 0, [1, 0]), short]
    assert list(curves(runs, "all")["a"]) == [0]
    assert {step: spread.mean for step, spread in metric_curves(runs, "reward/mean")["a"].items()} == {
        1: pytest.approx(0.2)
    }
    assert metric_curves(runs, "nowhere") == {}


def test_costs_are_means_over_seeds() -> None:
    table = costs([run("trrd", 0, [1, 0], teacher=True), run("trrd", 2, [1, 0], teacher=True), run("grpo", 0, [1, 0])])
    assert (table["trrd"].step_s, table["trrd"].exposed_scoring_s, table["trrd"].training_s) == pytest.approx(
        (3.0, 0.5, 6.0)
    )
    assert (table["trrd"].generated_tokens, table["trrd"].teacher_tokens) == (300.0, 300.0)
    assert (table["grpo"].generated_tokens, table["grpo"].teacher_tokens) == (300.0, 0.0)
    silent = RunRecord(
        method="sft",
        seed=0,
        steps=[{"step": 1, "traces/response_tokens": 7.0}, {"step": 2, "traces/response_tokens": 5.0}],
        evaluations={0: evaluation([0])},
        uses_teacher=False,
    )
    assert (costs([silent])["sft"].step_s, costs([silent])["sft"].teacher_tokens) == (None, 12.0)


def test_paired_t_by_hand() -> None:
    # Mean 0.2, standard deviation 0.1, standard error 0.1 / sqrt(3) = 0.057735. t with 2 degrees of freedom at
    # 97.5% is 4.302653.
    low, high, p_value = paired_t([0.1, 0.2, 0.3])
    assert (low, high) == pytest.approx((0.2 - 0.248413, 0.2 + 0.248413), abs=1e-6)
    # t = 2 sqrt(3) = 3.4641; with 2 degrees of freedom p = 1 - t / sqrt(2 + t^2).
    assert p_value == pytest.approx(1 - 3.4641016 / (2 + 12) ** 0.5)
    assert paired_t([0.0, 0.0, 0.0]) == (0.0, 0.0, 1.0)


def test_sign_permutation_by_hand() -> None:
    assert sign_permutation([0.5, 0.5, 0.5, 0.5]) == pytest.approx(2 / 16)  # only equal signs reach the sum
    # The sums of 6 of the 8 sign patterns of 3, 1, 1 are at least 3 in absolute value: all except +-(3 - 1 - 1).
    assert sign_permutation([3, 1, -1]) == pytest.approx(6 / 8)
    assert sign_permutation([0, 0.5, 0, 0.5]) == pytest.approx(2 / 4)  # prompts without a difference are ignored
    assert sign_permutation([0, 0]) == 1.0


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([]) == []


def test_clear_difference_is_found_with_its_direction() -> None:
    reference = [[0, 0, 0, 0, 0, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0, 0, 0, 0, 1], [0, 0, 0, 0, 0, 0, 0, 0, 0, 0]]
    better = [[1, 1, 1, 1, 1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 1, 1, 1, 0, 1], [1, 1, 1, 1, 1, 1, 1, 0, 1, 0]]
    first, other = (
        [run(name, seed, row) for seed, row in enumerate(rows)]
        for name, rows in (("grpo", reference), ("trrd", better))
    )
    (found,) = differences([*first, *other], margin=0.01)
    assert (found.difference, found.seeds, found.prompts, found.verdict) == (pytest.approx(0.8), 3, 10, "better")
    assert found.p_prompts == pytest.approx(2 / 2**9)  # nine prompts differ, all in one direction
    assert "trrd is better than grpo (+80.0 points" in found.sentence()
    (mirrored,) = differences([*other, *first], margin=0.01)
    assert (mirrored.verdict, mirrored.difference) == ("worse", pytest.approx(-0.8))


def test_disagreeing_seeds_are_within_the_noise() -> None:
    first = [run("grpo", seed, [0, 0, 0, 0, 1, 1, 1, 1]) for seed in range(3)]
    other = [
        run("trrd", seed, row)
        for seed, row in enumerate([[1, 1, 1, 0, 1, 1, 1, 1], [0, 0, 0, 0, 1, 1, 1, 1], [0, 0, 0, 0, 0, 0, 1, 1]])
    ]
    (found,) = differences([*first, *other], margin=0.01)
    assert found.verdict == "within the noise"
    # Differences of 3/8, 0 and -2/8: mean 1/24, standard deviation 0.31458.
    assert (found.low, found.high) == pytest.approx(
        (1 / 24 - 4.302653 * 0.314576 / 3**0.5, 1 / 24 + 4.302653 * 0.314576 / 3**0.5), abs=1e-4
    )
    assert found.sentence().startswith(
        "trrd and grpo are within the noise of each other (+4.2 points, 95% interval -74.0 to +82.3 over 3 seeds"
    )


def test_difference_not_significant_after_correction_is_within_the_noise() -> None:
    # 10, 11 and 10 more of 20 prompts are solved: t = (31 / 60) / (1 / 60) = 31, p = 0.00104. The others are equal.
    prompts = 20
    first = [run("grpo", seed, [0] * prompts) for seed in range(3)]
    other = [run("trrd", seed, [1] * (10 + seed % 2) + [0] * (10 - seed % 2)) for seed in range(3)]
    alike = [run(f"like{index}", seed, [0] * prompts) for index in range(50) for seed in range(3)]
    (alone,) = differences([*first, *other], margin=0.01)
    among = differences([*first, *other, *alike], margin=0.01)[0]
    assert (alone.verdict, alone.p_seeds) == ("better", pytest.approx(1 - 31 / (2 + 31**2) ** 0.5))
    assert (among.verdict, among.p_value) == (
        "within the noise",
        pytest.approx(51 * max(alone.p_seeds or 0, alone.p_prompts)),
    )
    assert "corrected for 51 comparisons" in among.sentence()
    assert among.sentence().endswith("The interval alone excludes 0; more seeds would help.")


def test_p_value_is_never_printed_as_zero() -> None:
    assert [p_text(p_value) for p_value in (1.0, 0.0214, 0.001, 0.0002)] == [
        "p = 1.000",
        "p = 0.021",
        "p = 0.001",
        "p < 0.001",
    ]


def test_one_seed_cannot_rank_methods() -> None:
    (found,) = differences([run("grpo", 0, [0] * 10), run("trrd", 0, [1] * 10)], margin=0.01)
    assert (found.verdict, found.low, found.p_seeds) == ("one seed", None, None)
    assert found.p_prompts == pytest.approx(2 / 2**10)
    assert "a single seed cannot rank the methods" in found.sentence()


def test_interval_within_the_margin_means_equal() -> None:
    first = [run("grpo", seed, [1, 0, 1, 0]) for seed in range(3)]
    other = [run("trrd", seed, [0, 1, 1, 0]) for seed in range(3)]
    (found,) = differences([*first, *other], margin=0.01)
    assert (found.verdict, found.difference) == ("equal", 0.0)


def test_equal_mean_with_a_wide_interval_is_not_equal() -> None:
    """Seeds differ by +25, 0 and -25 points: the mean is 0, far within the margin, but the interval is not."""
    first = [run("grpo", seed, [1, 0, 1, 0]) for seed in range(3)]
    other = [run("trrd", seed, row) for seed, row in enumerate([[1, 1, 1, 0], [1, 0, 1, 0], [1, 0, 0, 0]])]
    (found,) = differences([*first, *other], margin=0.02)
    assert (found.difference, found.verdict) == (pytest.approx(0.0), "within the noise")
    assert (found.low, found.high) == pytest.approx((-0.25 * 4.302653 / 3**0.5, 0.25 * 4.302653 / 3**0.5), abs=1e-6)
    (found,) = differences([*first, *other], margin=0.63)  # the ends are at 0.6210
    assert found.verdict == "equal"


def curve(method: str, seed: int, *evaluations: Sequence[float]) -> RunRecord:
    """Run with evaluations after 0, 2, 8 and so on steps."""
    steps = (0, 2, 8)[: len(evaluations)]
    return RunRecord(
        method=method,
        seed=seed,
        steps=[],
        evaluations={step: evaluation(rewards) for step, rewards in zip(steps, evaluations, strict=True)},
        uses_teacher=False,
    )


def test_area_under_the_curve_by_hand() -> None:
    # Steps 0, 2, 8: (2 * (0 + 0.5) / 2 + 6 * (0.5 + 1) / 2) / 8 = (0.5 + 4.5) / 8.
    assert area_under([0, 2, 8], [0.0, 0.5, 1.0]) == pytest.approx(5 / 8)
    assert area_under([3, 4], [0.25, 0.75]) == 0.5
    for steps in ([], [1], [2, 2], [2, 1]):
        with pytest.raises(ContractError, match="requires two ascending steps or more"):
            area_under(steps, [0.0] * len(steps))
    spreads = areas([curve("a", 0, [0, 0], [1, 0], [1, 1]), curve("a", 1, [0, 0], [0, 0], [1, 0])])
    # Seed 1: 6 * 0.5 / 2 / 8 = 3/16. The standard deviation of two values is their distance over sqrt(2).
    assert (spreads["a"].mean, spreads["a"].sd) == pytest.approx(((5 / 8 + 3 / 16) / 2, (5 / 8 - 3 / 16) / 2**0.5))


def test_areas_use_the_steps_that_all_runs_have() -> None:
    short = curve("b", 0, [0, 0], [1, 1])
    assert areas([curve("a", 0, [0, 0], [0, 0], [1, 1]), short])["a"].mean == 0.0  # steps 0 and 2
    assert areas([curve("a", 0, [0, 0]), short]) == {}
    assert differences([curve("a", 0, [0, 0]), short], margin=0.01, measure="area") == []


def test_area_tells_faster_learning_apart_where_the_ends_are_equal() -> None:
    """Prompts solved after 2 of 8 steps: 9, 10, 9 of 10 against 1, 2, 2. All are solved in the end.

    A prompt that is solved after 2 steps instead of 8 has an area that is 1/2 larger: (2 + 6) / 2 / 8.
    """
    none, everything = [0] * 10, [1] * 10

    def solved(count: int) -> list[int]:
        return [1] * count + [0] * (10 - count)

    slow = [curve("grpo", seed, none, solved(count), everything) for seed, count in enumerate((1, 2, 2))]
    fast = [curve("trrd", seed, none, solved(count), everything) for seed, count in enumerate((9, 10, 9))]
    (final,) = differences([*slow, *fast], margin=0.01)
    (area,) = differences([*slow, *fast], margin=0.01, measure="area")
    assert (final.verdict, final.difference, final.measure) == ("equal", 0.0, "final")
    assert (area.difference, area.seeds, area.prompts, area.measure) == (pytest.approx(0.5 * 23 / 30), 3, 10, "area")
    # Differences of the seeds: 0.4, 0.4 and 0.35; standard error 0.028868 / sqrt(3) = 1/60.
    assert (area.low, area.high) == pytest.approx((0.5 * 23 / 30 - 4.302653 / 60, 0.5 * 23 / 30 + 4.302653 / 60))
    assert area.p_prompts == pytest.approx(2 / 2**9)  # nine prompts differ, all in one direction
    assert area.verdict == "better"
    assert area.sentence().startswith(
        "By the area under the learning curve, trrd is better than grpo (+38.3 points, 95% interval +31.2 to +45.5"
    )


def test_area_requires_the_same_prompts_at_every_step() -> None:
    moved = RunRecord(
        method="a",
        seed=0,
        steps=[],
        evaluations={0: evaluation([0, 0]), 2: evaluation([1, 1], first_prompt=1)},
        uses_teacher=False,
    )
    with pytest.raises(ContractError, match="of the same prompts at every step; got 2 at step 0, 2 at step 2"):
        differences([moved, moved], margin=0.01, measure="area")


def test_runs_on_different_prompts_cannot_be_paired() -> None:
    other = RunRecord(
        method="trrd", seed=0, steps=[], evaluations={0: evaluation([1, 0], first_prompt=7)}, uses_teacher=True
    )
    with pytest.raises(ContractError, match="same prompts"):
        differences([run("grpo", 0, [1, 0]), other], margin=0.01)
    with pytest.raises(ContractError, match="no seed in common"):
        differences([run("grpo", 0, [1, 0]), run("trrd", 1, [1, 0])], margin=0.01)


def test_false_positive_rate_of_equal_methods_is_bounded() -> None:
    generator = np.random.default_rng(0)
    findings = 0
    for _ in range(150):
        difficulties = generator.uniform(size=40)
        runs = [
            run(
                method,
                seed,
                (generator.uniform(size=40) < np.clip(difficulties + generator.normal(0, 0.05), 0, 1))
                .astype(float)
                .tolist(),
            )
            for method in ("a", "b", "c")
            for seed in range(3)
        ]
        findings += any(found.verdict in ("better", "worse") for found in differences(runs, margin=0.0))
    assert findings <= 0.05 * 150 + 3 * (150 * 0.05 * 0.95) ** 0.5  # three standard errors above the promised rate
