"""Environment and memory of a judge's process."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from actors.verifier.killable_process import Judge
from rlad.contracts import Outcome
from rlad.verifiers import Verdict, Verifier


@dataclass(frozen=True)
class Reporting:
    """Finds the text of the response in its environment, or takes as many MiB of memory as it says."""

    def verify(self, response_text: str, answer: Any) -> Verdict:
        if response_text.isdigit():
            taken = len(bytearray(int(response_text) << 20))
            return Verdict(reward=float(taken > 0), outcome=Outcome.CORRECT)
        shown = Path("/proc/self/environ").read_bytes().decode()
        return Verdict(reward=float(response_text in f"{dict(os.environ)} {shown}"), outcome=Outcome.CORRECT)


def build() -> Mapping[str, Verifier]:
    return {"task": Reporting()}


def test_judge_keeps_no_secret_and_little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (
        "DATABASE_URL",
        "GITHUB_PAT",
        "MYSQL_PWD",
        "RAY_AUTH_TOKEN",
        "SOMETHING_NEW",
        "LC_KEPT",
        "NEEDED_BY_VERIFIER",
    ):
        monkeypatch.setenv(name, f"value of {name}")
    judge = Judge(build, timeout_s=20, memory_mib=200, environment=["NEEDED_BY_VERIFIER"])
    names = [
        "DATABASE_URL",
        "GITHUB_PAT",
        "MYSQL_PWD",
        "RAY_AUTH_TOKEN",
        "SOMETHING_NEW",
        "LC_KEPT",
        "NEEDED_BY_VERIFIER",
        "PATH",
    ]
    try:
        found = judge.judge("task", [*names, "100", "1500", "100"], "")
    finally:
        judge.close()
    assert [each.reward for each in found[:8]] == [0, 0, 0, 0, 0, 1, 1, 1]
    assert [each.outcome for each in found[8:]] == [Outcome.CORRECT, Outcome.ERROR, Outcome.CORRECT]
    assert (found[9].problem or "").startswith("MemoryError")
