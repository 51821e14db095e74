"""Verdict on a teacher, in words: what to expect from imitating it on each kind of problem."""

from __future__ import annotations

import enum
from collections.abc import Mapping

from rlad.evaluation.accuracy import Interval
from rlad.evaluation.teacher_check import KindStatistics, TeacherCheck

MIN_MIXED_PROMPTS = 10
"""Prompts with different rewards below which no verdict is given."""
LOW_OVERLAP = 0.5
"""Mean overlap of likely tokens below which the verdict mentions it. A choice of this project."""


class Finding(enum.Enum):
    """Conclusion about imitating the teacher."""

    HELPS = "helps"
    HURTS = "hurts"
    UNCLEAR = "unclear"
    TOO_FEW = "too_few"


def finding_of(statistics: KindStatistics) -> Finding:
    """Return the finding for one kind of problem: whether the interval of the agreement is on one side of 0.5."""
    agreement = statistics.agreement
    if agreement is None or statistics.mixed_prompts < MIN_MIXED_PROMPTS:
        return Finding.TOO_FEW
    if agreement.high < 0.5:
        return Finding.HURTS
    return Finding.HELPS if agreement.low > 0.5 else Finding.UNCLEAR


def verdict(check: TeacherCheck) -> list[str]:
    """Return the verdict: one sentence or two for each kind, or for all prompts if there is one kind, then advice."""
    rows: Mapping[str, KindStatistics] = check.kinds if len(check.kinds) > 1 else {"": check.overall}
    findings = {name: finding_of(statistics) for name, statistics in rows.items()}
    return [_sentence(name, statistics, findings[name]) for name, statistics in rows.items()] + [
        *_about_overlap(check.overall),
        _advice(list(findings.values())),
    ]


def _sentence(name: str, statistics: KindStatistics, finding: Finding) -> str:
    where = f"{name}: " if name else ""
    if finding is Finding.TOO_FEW or statistics.agreement is None:
        return (
            f"{where}no verdict: only {statistics.mixed_prompts} of {statistics.prompts} prompts have responses with "
            f"different rewards, fewer than {MIN_MIXED_PROMPTS} (mean reward {_number(statistics.reward)})"
        )
    measured = _measured(statistics.agreement)
    match finding:
        case Finding.HURTS:
            return f"{where}the teacher prefers wrong answers to right ones ({measured}): expect imitation to hurt"
        case Finding.HELPS:
            return f"{where}the teacher prefers right answers to wrong ones ({measured}): imitation should help"
        case _:
            return f"{where}no preference is visible ({measured}): expect little from the teacher, or sample more"


def _about_overlap(overall: KindStatistics) -> list[str]:
    if overall.overlap is None or overall.overlap >= LOW_OVERLAP:
        return []
    return [
        f"student and teacher share only {overall.overlap:.0%} of their likely tokens: the teacher rates text that it "
        "would not write itself; offline distillation first would bring them closer"
    ]


def _advice(findings: list[Finding]) -> str:
    if Finding.HURTS in findings:
        return (
            "advice: trrd with teacher_log_ratio_clamp `auto`, or grpo. Methods that imitate outright (kdrl, opd, sft) "
            "learn what the teacher has wrong"
        )
    if Finding.HELPS in findings:
        return (
            "advice: the teacher is worth it; trrd is the cautious choice. kdrl, opd and sft are faster if it is right "
            "on every kind of problem"
        )
    if Finding.UNCLEAR in findings:
        return "advice: grpo costs less, or trrd with teacher_log_ratio_clamp `auto`; see whether more prompts decide"
    return "advice: none; sample more prompts, or prompts that the student solves sometimes"


def _measured(agreement: Interval) -> str:
    interval = f"95% interval {agreement.low:.0%} to {agreement.high:.0%}"
    return f"{agreement.mean:.0%} of pairs in the order of the reward, {interval}"


def _number(value: float | None) -> str:
    return "none" if value is None else f"{value:.2f}"
