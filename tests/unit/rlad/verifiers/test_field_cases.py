"""Verifiers on answers that users reported. Skipped where the shared collection of cases is missing.

Run as a program, it prints the counts by kind, the differing cases and the time of a verdict.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pytest

from actors.verifier.killable_process import Judge
from rlad.contracts import Outcome
from rlad.verifiers import Verifier, build_verifier

_FILE = Path(__file__).resolve().parents[5] / "shared" / "data" / "field" / "verifier_cases.jsonl"
_SETTINGS = {
    "math": {"name": "math_answer"},
    "mc": {"name": "multiple_choice"},
    "mc10": {"name": "multiple_choice", "options": 10},
    "cd": {"name": "countdown"},
    "kk": {"name": "knights_knaves"},
    "code": {"name": "code_tests"},
}
_LETTERS = {
    Outcome.CORRECT: "C",
    Outcome.WRONG: "W",
    Outcome.UNPARSEABLE: "U",
    Outcome.TIMEOUT: "T",
    Outcome.ERROR: "E",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgedCase:
    """One case and its outcome: C correct, W wrong, U unparseable, E malformed expected answer, T timeout."""

    name: str
    kind: str
    answer: str
    response: str
    expected: str
    got: str
    seconds: float

    @property
    def is_expected(self) -> bool:
        return self.got in self.expected.split("|")

    @property
    def is_false_positive(self) -> bool:
        return self.got == "C" and not self.is_expected


def build_verifiers() -> dict[str, Verifier]:
    return {kind: build_verifier(settings) for kind, settings in _SETTINGS.items()}


def judge_cases(path: Path, kinds: tuple[str, ...] = ()) -> list[JudgedCase]:
    """Return the cases of a file with their outcomes."""
    judge = Judge(build_verifiers, timeout_s=5)
    judge.judge("math", [r"\boxed{1}"], "1")  # Start the process outside of the measured time.
    judged = []
    for line in path.read_text(encoding="utf-8").splitlines():
        case = json.loads(line)
        if kinds and case["kind"] not in kinds:
            continue
        started = time.perf_counter()
        [judgement] = judge.judge(case["kind"], [case["response"]], case["answer"])
        judged.append(
            JudgedCase(
                name=case["id"],
                kind=case["kind"],
                answer=case["answer"],
                response=case["response"],
                expected=case["expected"],
                got=_LETTERS[judgement.outcome],
                seconds=time.perf_counter() - started,
            )
        )
    judge.close()
    return judged


def summary(judged: list[JudgedCase]) -> str:
    """Return the counts by kind, the false positives and the mean time of a verdict."""
    lines = []
    for kind in sorted({case.kind for case in judged}):
        cases = [case for case in judged if case.kind == kind]
        differing = Counter(f"{case.expected}->{case.got}" for case in cases if not case.is_expected)
        lines.append(
            f"{kind}: {sum(case.is_expected for case in cases)}/{len(cases)} as expected, "
            f"{sum(case.is_false_positive for case in cases)} false positives, "
            f"{1000 * sum(case.seconds for case in cases) / len(cases):.1f} ms a verdict; {dict(differing)}"
        )
    return "\n".join(lines)


@pytest.mark.long
@pytest.mark.skipif(not _FILE.exists(), reason=f"no collection of cases at {_FILE}")
def test_reported_answers_get_the_expected_outcome() -> None:
    judged = judge_cases(_FILE)
    print(summary(judged))
    assert [case for case in judged if case.is_false_positive] == []
    assert sum(case.is_expected for case in judged) >= 0.98 * len(judged), summary(judged)


if __name__ == "__main__":
    import sys

    judged_cases = judge_cases(_FILE, tuple(sys.argv[1:]))
    for item in judged_cases:
        if not item.is_expected:
            print(f"{item.name} {item.expected}->{item.got}\n   gold {item.answer!r}\n   resp {item.response[-300:]!r}")
    print(summary(judged_cases))
