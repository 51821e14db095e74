"""Verifiers that are functions with an import path."""

from __future__ import annotations

from pathlib import Path

import pytest

from rlad.contracts import Outcome
from rlad.errors import ConfigError, ContractError
from rlad.verifiers import Verifier, build_verifier

MODULE = """
import numpy as np
from rlad.contracts import Outcome
from rlad.verifiers import Verdict

def share(response_text, answer):
    return response_text.count(answer) / len(response_text)

def same(response_text, answer):
    return response_text == answer

def array_same(response_text, answer):
    return np.array([response_text]) == answer

def half(response_text, answer):
    return np.float32(0.5)

def unparseable(response_text, answer):
    return Verdict(reward=-1.0, outcome=Outcome.UNPARSEABLE)

def nothing(response_text, answer):
    return None

class Scores:
    @staticmethod
    def numpy_same(response_text, answer):
        return np.bool_(response_text == answer)

CONSTANT = 3
"""


@pytest.fixture(autouse=True)
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_rewards.py").write_text(MODULE)
    (tmp_path / "broken_rewards.py").write_text("raise OSError('no licence file')")
    monkeypatch.syspath_prepend(tmp_path)


def verifier(function: str, **settings: float) -> Verifier:
    return build_verifier({"name": "python_function", "path": f"own_rewards:{function}", **settings})


@pytest.mark.parametrize(
    ("function", "reward", "outcome"),
    [
        ("same", 0.0, Outcome.WRONG),
        ("share", 0.75, Outcome.WRONG),
        ("half", 0.5, Outcome.WRONG),
        ("Scores.numpy_same", 0.0, Outcome.WRONG),
        ("unparseable", -1.0, Outcome.UNPARSEABLE),
    ],
)
def test_return_value_of_the_function_is_the_verdict(function: str, reward: float, outcome: Outcome) -> None:
    verdict = verifier(function).verify("xxxy", "x")
    assert (verdict.reward, verdict.outcome) == (reward, outcome)


def test_correct_answers_get_the_reward() -> None:
    for function in ("same", "share", "Scores.numpy_same"):
        assert verifier(function).verify("x", "x").outcome == Outcome.CORRECT


def test_minimum_correct_reward_is_configurable() -> None:
    assert verifier("share", correct_from=0.75).verify("xxxy", "x").outcome == Outcome.CORRECT
    assert verifier("share", correct_from=0.76).verify("xxxy", "x").outcome == Outcome.WRONG


@pytest.mark.parametrize("function", ["nothing", "array_same"])
def test_other_return_values_are_refused(function: str) -> None:
    with pytest.raises(ContractError, match=f"own_rewards:{function} must return a number, a bool or a Verdict"):
        verifier(function).verify("x", "x")


@pytest.mark.parametrize(
    ("path", "complaint"),
    [
        ("missing_rewards:same", "cannot be imported: ModuleNotFoundError: No module named 'missing_rewards'"),
        ("broken_rewards:same", "cannot be imported: OSError: no licence file"),
        ("own_rewards:other", "'own_rewards' has no 'other'"),
        ("own_rewards:Scores.other", "'Scores' has no 'other'"),
        ("own_rewards:CONSTANT", "must be callable, got int"),
        ("own_rewards.same", "path: String should match pattern"),
        ("own_rewards:", "path: String should match pattern"),
        ("own rewards:same", "path: String should match pattern"),
    ],
)
def test_paths_without_a_function_are_refused(path: str, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        build_verifier({"name": "python_function", "path": path})
