"""Real child processes, killed for real."""

from __future__ import annotations

import os
import re
import signal
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import psutil
import pytest

from actors.verifier.killable_process import Judge
from rlad.contracts import Outcome
from rlad.errors import EngineError
from rlad.verifiers import Verdict, Verifier

TIMEOUT_S = 0.5


@dataclass(frozen=True)
class ObedientVerifier:
    """Does what the response says."""

    def verify(self, response_text: str, answer: Any) -> Verdict:
        match response_text.split():
            case ["loop"]:
                while True:
                    pass
            case ["backtrack"]:  # holds the interpreter inside C code
                re.match(r"(a|aa)+$", "a" * 60 + "b")
            case ["raise"]:
                raise KeyError("no such person")
            case ["exit"]:
                sys.exit(3)
            case ["die"]:
                os.kill(os.getpid(), signal.SIGKILL)
            case ["nan"]:
                return Verdict(reward=float("nan"), outcome=Outcome.CORRECT)
            case ["modules"]:
                heavy = {"torch", "ray", "transformers", "vllm"} & sys.modules.keys()
                return Verdict(reward=float(len(heavy)), outcome=Outcome.CORRECT)
        is_right = response_text == answer
        return Verdict(reward=float(is_right), outcome=Outcome.CORRECT if is_right else Outcome.WRONG)

    def answer_of(self, response_text: str) -> str | None:
        self.verify(response_text, "")
        return response_text.upper() or None


def build_obedient() -> Mapping[str, Verifier]:
    return {"obey": ObedientVerifier()}


def build_none() -> Mapping[str, Verifier]:
    raise OSError("no verifier here")


@pytest.fixture(scope="module")
def judge() -> Iterator[Judge]:
    judge = Judge(build_obedient, timeout_s=TIMEOUT_S)
    yield judge
    judge.close()


def outcomes(judge: Judge, texts: list[str]) -> list[Outcome]:
    return [judgement.outcome for judgement in judge.judge("obey", texts, "yes")]


def children() -> list[psutil.Process]:
    return [child for child in psutil.Process().children() if "multiprocessing.spawn" in " ".join(child.cmdline())]


def test_verdicts_come_in_the_order_of_the_responses(judge: Judge) -> None:
    texts = ["yes" if index % 3 else f"no {index}" for index in range(40)]
    assert [judgement.reward for judgement in judge.judge("obey", texts, "yes")] == [
        float(index % 3 > 0) for index in range(40)
    ]
    assert judge.judge("obey", [], "yes") == []


@pytest.mark.parametrize("stuck", ["loop", "backtrack"])
def test_response_past_its_deadline_is_killed_and_the_next_are_judged(judge: Judge, stuck: str) -> None:
    judge.judge("obey", ["yes"], "yes")  # so that the child is up
    [child] = children()
    start = time.monotonic()
    judgements = judge.judge("obey", ["yes", stuck, "no", "yes"], "yes")
    elapsed_s = time.monotonic() - start
    assert [judgement.outcome for judgement in judgements] == [
        Outcome.CORRECT,
        Outcome.TIMEOUT,
        Outcome.WRONG,
        Outcome.CORRECT,
    ]
    assert judgements[1].reward == 0.0
    assert not child.is_running()
    assert elapsed_s > TIMEOUT_S


def test_each_response_has_a_deadline_of_its_own(judge: Judge) -> None:
    assert outcomes(judge, ["loop", "loop", "yes"]) == [Outcome.TIMEOUT, Outcome.TIMEOUT, Outcome.CORRECT]


@pytest.mark.parametrize(
    ("text", "problem"),
    [("raise", "KeyError: 'no such person'"), ("exit", "SystemExit: 3"), ("nan", "NonFiniteReward: nan")],
)
def test_failing_verifier_is_an_error_and_not_a_wrong_answer(judge: Judge, text: str, problem: str) -> None:
    failed, judged = judge.judge("obey", [text, "yes"], "yes")
    assert (failed.outcome, failed.reward, failed.problem) == (Outcome.ERROR, 0.0, problem)
    assert (judged.outcome, judged.problem) == (Outcome.CORRECT, None)


def test_answers_come_in_the_order_of_the_responses_and_a_failure_is_none(judge: Judge) -> None:
    extractions = judge.answers("obey", ["yes", "raise", "", "loop", "die", "no"])
    assert [extraction.answer for extraction in extractions] == ["YES", None, None, None, None, "NO"]
    assert [extraction.problem for extraction in extractions] == [
        None,
        "KeyError: 'no such person'",
        None,
        "Timeout",
        "ProcessExpired: exit code -9",
        None,
    ]


def test_child_that_dies_on_a_response_is_replaced(judge: Judge) -> None:
    judgements = judge.judge("obey", ["yes", "die", "yes"], "yes")
    assert [judgement.outcome for judgement in judgements] == [Outcome.CORRECT, Outcome.ERROR, Outcome.CORRECT]
    assert judgements[1].problem == "ProcessExpired: exit code -9"


def test_child_killed_between_groups_is_replaced(judge: Judge) -> None:
    judge.judge("obey", ["yes"], "yes")
    [child] = children()
    child.kill()
    assert outcomes(judge, ["yes", "no"]) == [Outcome.CORRECT, Outcome.WRONG]


def test_child_imports_neither_engines_nor_the_cluster(judge: Judge) -> None:
    assert judge.judge("obey", ["modules"], "yes")[0].reward == 0.0


def test_child_that_cannot_start_is_a_clear_error() -> None:
    judge = Judge(build_none, timeout_s=TIMEOUT_S)
    with pytest.raises(EngineError, match="keeps dying"):
        judge.judge("obey", ["yes"], "yes")
    judge.close()
    judge.close()


def test_close_leaves_no_process() -> None:
    before = {child.pid for child in children()}
    judge = Judge(build_obedient, timeout_s=TIMEOUT_S)
    judge.judge("obey", ["yes"], "yes")
    [child] = [child for child in children() if child.pid not in before]
    judge.close()
    assert not child.is_running()
