"""Wrong answers that mean the same come back from a verifier worker as one vote."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from actors.verifier.killable_process import Judge
from actors.verifier.worker import VerifierWorker
from rlad.contracts import Outcome
from rlad.testing import make_group
from rlad.verifiers import Verdict, Verifier

TIMEOUT_S = 0.5


@dataclass(frozen=True)
class LengthVerifier:
    """Correct is the expected text. Answers of equal length mean the same."""

    def verify(self, response_text: str, answer: Any) -> Verdict:
        is_right = response_text == answer
        return Verdict(reward=float(is_right), outcome=Outcome.CORRECT if is_right else Outcome.WRONG)

    def answer_of(self, response_text: str) -> str | None:
        return response_text

    def is_same_answer(self, first: str, second: str) -> bool:
        if "loop" in (first, second):
            while True:
                pass
        return len(first) == len(second)


@dataclass(frozen=True)
class TextVerifier:
    """As `LengthVerifier`, without an equivalence."""

    def verify(self, response_text: str, answer: Any) -> Verdict:
        return LengthVerifier().verify(response_text, answer)

    def answer_of(self, response_text: str) -> str | None:
        return response_text


def build_both() -> Mapping[str, Verifier]:
    return {"length": LengthVerifier(), "text": TextVerifier()}


@pytest.fixture
def judge() -> Iterator[Judge]:
    judge = Judge(build_both, timeout_s=TIMEOUT_S)
    yield judge
    judge.close()


def test_comparison_past_its_deadline_is_different_and_the_next_is_compared(judge: Judge) -> None:
    stuck = judge.compare("length", "loop", ["lo", "four"])
    assert (stuck.is_same, stuck.problem) == ((False, False), "Timeout")
    assert judge.compare("length", "ab", ["cd", "c"]).is_same == (True, False)


def test_wrong_answers_are_merged_only_where_the_verifier_compares(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The worker removes this name, which some test runners do not have.
    monkeypatch.setitem(vars(sys.modules["__main__"]), "__file__", __file__)
    tokenizer = Tokenizer(models.WordLevel({letter: index for index, letter in enumerate("12abcd?")}, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    worker = VerifierWorker(
        build_verifiers=build_both, tokenizer_path=str(tmp_path), processes=1, timeout_s=5.0, memory_mib=1024
    )
    texts = ["12", "ab", "a", "cd", "b", "12"]
    responses = [["12abcd".index(letter) for letter in text] for text in texts]
    answers = {}
    for task in ("length", "text"):
        group = make_group(responses, task=task, answer="12", truncated=(5,))
        result = worker.verify(group.to_columns(), with_texts=True)
        assert result.texts is not None
        assert list(result.texts) == texts
        answers[task] = result.answers
    worker._judges.get().close()
    assert answers["text"] == ("12", "ab", "a", "cd", "b", None)
    assert answers["length"] == ("12", "ab", "a", "ab", "a", None)
