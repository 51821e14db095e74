"""Statistics of a teacher on scored responses, and the verdict: values computed by hand."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence

import numpy as np
import pytest

from rlad.errors import ContractError
from rlad.evaluation.teacher_check import (
    HISTOGRAM_EDGES,
    AnchorSettings,
    ScoredResponses,
    TeacherCheck,
    check_teacher,
    support_overlap,
)
from rlad.evaluation.teacher_verdict import MIN_MIXED_PROMPTS, Finding, finding_of, verdict

PAPER = AnchorSettings(alpha=0.5, clamp=(-1.0, 1.0), eps_low=0.2, eps_high=0.28)


def responses(
    log_ratios: Sequence[Sequence[float]],
    rewards: Sequence[float],
    *,
    advantages: Sequence[float] | None = None,
    kinds: tuple[str, ...] = ("people 2",),
    is_judged: Sequence[bool] | None = None,
    overlap: float = 1.0,
) -> ScoredResponses:
    """Return responses whose tokens have the given log pi_old - log pi_T."""
    tokens = np.array([ratio for response in log_ratios for ratio in response], np.float32)
    return ScoredResponses(
        kinds=kinds,
        rewards=np.array(rewards, np.float32),
        advantages=np.array(np.sign(np.array(rewards) - np.mean(rewards)) if advantages is None else advantages),
        is_judged=np.ones(len(rewards), bool) if is_judged is None else np.array(is_judged),
        offsets=np.cumsum([0, *map(len, log_ratios)]),
        student=np.full(len(tokens), -2.0, np.float32),
        teacher=np.float32(-2.0) - tokens,
        overlap=np.full(len(tokens), overlap),
    )


def check_of(*groups: ScoredResponses, anchor: AnchorSettings = PAPER, bins: int = 10) -> TeacherCheck:
    return check_teacher(groups, anchor, bins=bins)


def test_agreement_is_the_share_of_pairs_that_the_summed_pull_orders_as_the_reward() -> None:
    # Pulls (minus the sums): 1, -1, 0.5, 0.5. Pairs with different rewards (better, worse): (0, 1), (0, 2), (3, 1) are
    # ordered as the reward, and (3, 2) is equal, which counts as half.
    group = responses([[-2.0, 1.0], [1.0], [-0.5], [-0.25, -0.25]], [1, 0, 0, 1])
    agreement = check_of(group).overall.agreement
    assert agreement is not None
    assert agreement.mean == pytest.approx((1 + 1 + 1 + 0.5) / 4)


def test_response_without_a_verdict_is_in_no_pair_and_in_no_mean_reward() -> None:
    group = responses([[1.0], [-1.0], [5.0]], [1, 0, 1], advantages=[1, -1, 0], is_judged=[True, True, False])
    found = check_of(group, responses([[0.0]], [0])).overall
    assert found.agreement is not None
    assert found.agreement.mean == 0.0
    assert found.reward == pytest.approx(1 / 3)


def test_group_with_equal_rewards_is_no_mixed_prompt() -> None:
    found = check_of(responses([[1.0], [-1.0]], [1, 1]), responses([[1.0], [-1.0]], [0, 1])).overall
    assert (found.prompts, found.mixed_prompts) == (2, 1)
    assert check_of(responses([[1.0], [-1.0]], [1, 1])).overall.agreement is None


def test_log_ratios_are_averaged_over_tokens_and_by_the_sign_of_the_advantage() -> None:
    group = responses([[1.0, 0.0, 0.5], [-3.0], [9.0]], [1, 0, 0], advantages=[1, -1, 0])
    found = check_of(group).overall
    assert found.log_ratio == pytest.approx(7.5 / 5)
    assert found.log_ratio_better == pytest.approx(0.5)
    assert found.log_ratio_worse == pytest.approx(-3.0)


def test_teacher_disagrees_on_a_token_that_it_pulls_against_the_advantage() -> None:
    # A > 0: 1.0 is pulled down, against A; -0.5 and 0 are not. A < 0: -2 is pulled up, against A; 3 is not.
    group = responses([[1.0, -0.5, 0.0], [-2.0, 3.0]], [1, 0])
    assert check_of(group).overall.token_disagreement == pytest.approx(2 / 5)


def test_veto_fractions_follow_the_thresholds_of_the_clip_range() -> None:
    up, down = math.log(1.28) / 0.5, math.log(0.8) / 0.5
    better = [up + 0.01, up - 0.01, -5.0, 5.0]
    worse = [down - 0.01, down + 0.01, 5.0]
    found = check_of(responses([better, worse], [1, 0])).overall
    assert found.veto_positive == pytest.approx(2 / 4)
    assert found.veto_negative == pytest.approx(1 / 3)


def test_narrow_clamp_vetoes_nothing() -> None:
    narrow = AnchorSettings(alpha=0.5, clamp=(-0.44, 0.44), eps_low=0.2, eps_high=0.28)
    found = check_of(responses([[5.0], [-5.0]], [1, 0]), anchor=narrow).overall
    assert (found.veto_positive, found.veto_negative) == (0.0, 0.0)


def test_thresholds_are_given_where_the_clamp_reaches_them() -> None:
    low, high = PAPER.veto_thresholds
    assert (low, high) == (pytest.approx(2 * math.log(0.8)), pytest.approx(2 * math.log(1.28)))
    # 0.45 is beyond 0.446, the lower threshold, and within 0.494, the upper one.
    between = AnchorSettings(alpha=0.5, clamp=(-0.45, 0.45), eps_low=0.2, eps_high=0.28)
    assert between.veto_thresholds == (pytest.approx(2 * math.log(0.8)), None)
    grpo = AnchorSettings(alpha=1.0, clamp=(-math.inf, math.inf), eps_low=0.2, eps_high=0.28)
    assert grpo.veto_thresholds == (None, None)


def test_token_without_a_finite_teacher_score_is_counted_and_in_no_other_figure() -> None:
    group = responses([[1.0, math.nan], [-1.0, math.inf]], [1, 0])
    found = check_of(group)
    assert found.overall.missing == pytest.approx(0.5)
    assert (found.overall.log_ratio_better, found.overall.log_ratio_worse) == (1.0, -1.0)
    assert found.overall.agreement is not None
    assert found.overall.agreement.mean == 0.0


def test_positions_are_counted_within_each_response() -> None:
    group = responses([[1.0, 2.0, 3.0, 4.0], [0.5, 0.5]], [1, 0])
    first, second = check_of(group, bins=2).positions
    assert (first.start, first.end, first.tokens) == (0, 2, 4)
    assert (first.better, first.worse) == (1.5, 0.5)
    assert (second.start, second.end, second.tokens) == (2, 4, 2)
    assert (second.better, second.worse) == (3.5, None)


def test_histogram_holds_shares_of_tokens_and_its_outer_bins_everything_beyond() -> None:
    found = check_of(responses([[100.0, 0.1, 0.1, 0.1], [-100.0]], [1, 0]))
    assert found.histogram_better[-1] == pytest.approx(0.25)
    assert sum(found.histogram_better) == pytest.approx(1)
    assert found.histogram_better[HISTOGRAM_EDGES.index(0.0)] == pytest.approx(0.75)
    assert found.histogram_worse[0] == 1.0


def test_kinds_have_their_own_prompts_in_natural_order() -> None:
    groups = [responses([[0.0], [1.0]], [1, 0], kinds=(kind,), overlap=0.5) for kind in ("people 10", "people 9")]
    found = check_of(*groups, responses([[1.0], [0.0]], [1, 0], kinds=("people 9", "task kk"), overlap=1.0))
    assert list(found.kinds) == ["people 9", "people 10", "task kk"]
    assert [each.prompts for each in found.kinds.values()] == [2, 1, 1]
    assert found.kinds["people 9"].overlap == pytest.approx(0.75)
    agreements = [each.agreement.mean for each in found.kinds.values() if each.agreement is not None]
    assert agreements == [0.5, 1.0, 0.0]


def test_unknown_overlap_is_none() -> None:
    found = check_of(responses([[0.0], [1.0]], [1, 0], overlap=math.nan))
    assert found.overall.overlap is None
    json.dumps(found.as_dict(), allow_nan=False)


def test_overlap_counts_shared_tokens_in_any_order() -> None:
    student, teacher = np.array([[1, 2, 3, 4], [5, 6, 7, 8]]), np.array([[4, 9, 1, 2], [1, 2, 3, 4]])
    assert support_overlap(student, teacher).tolist() == [0.75, 0.0]


def test_check_without_groups_is_refused() -> None:
    with pytest.raises(ContractError, match="at least one group"):
        check_teacher([], PAPER)


def test_column_of_another_length_is_refused() -> None:
    with pytest.raises(ContractError, match="rewards must have 2 entries"):
        responses([[1.0], [2.0]], [1])


def mixed(kind: str, share: float, *, prompts: int = 40, overlap: float = 0.9) -> list[ScoredResponses]:
    """Return prompts with one right and one wrong response. The teacher prefers the right one on `share` of them."""
    agreeing = round(share * prompts)
    return [
        responses([[-1.0], [1.0]] if at < agreeing else [[1.0], [-1.0]], [1, 0], kinds=(kind,), overlap=overlap)
        for at in range(prompts)
    ]


def test_finding_needs_an_interval_on_one_side_of_one_half() -> None:
    findings = {share: finding_of(check_of(*mixed("a", share)).overall) for share in (0.1, 0.4, 0.6, 0.9)}
    assert findings == {0.1: Finding.HURTS, 0.4: Finding.UNCLEAR, 0.6: Finding.UNCLEAR, 0.9: Finding.HELPS}


def test_finding_needs_enough_mixed_prompts() -> None:
    assert finding_of(check_of(*mixed("a", 1.0, prompts=MIN_MIXED_PROMPTS - 1)).overall) is Finding.TOO_FEW
    assert finding_of(check_of(*mixed("a", 1.0, prompts=MIN_MIXED_PROMPTS)).overall) is Finding.HELPS


def test_verdict_names_the_kind_on_which_the_teacher_is_wrong_and_advises_against_imitation() -> None:
    sentences = verdict(check_of(*mixed("people 2", 0.9), *mixed("people 4", 0.1)))
    assert len(sentences) == 3
    assert sentences[0].startswith("people 2: the teacher prefers right answers to wrong ones (90% of pairs")
    assert sentences[1].startswith("people 4: the teacher prefers wrong answers to right ones (10% of pairs")
    assert "trrd with teacher_log_ratio_clamp `auto`, or grpo" in sentences[2]


def test_verdict_on_a_right_teacher_of_one_kind_names_no_kind() -> None:
    sentences = verdict(check_of(*mixed("people 2", 0.9)))
    assert sentences[0].startswith("the teacher prefers right answers")
    assert "worth it" in sentences[1]


def test_verdict_mentions_a_low_overlap() -> None:
    assert any("only 40% of their likely tokens" in each for each in verdict(check_of(*mixed("a", 0.9, overlap=0.4))))
    assert not any("likely tokens" in each for each in verdict(check_of(*mixed("a", 0.9, overlap=0.5))))


def test_verdict_without_evidence_asks_for_more_prompts() -> None:
    sentences = verdict(check_of(responses([[1.0], [0.0]], [1, 1])))
    assert sentences[0] == (
        "no verdict: only 0 of 1 prompts have responses with different rewards, fewer than 10 (mean reward 1.00)"
    )
    assert "sample more prompts" in sentences[1]
