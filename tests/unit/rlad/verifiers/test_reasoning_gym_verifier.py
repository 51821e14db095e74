"""Verdicts of reasoning-gym's scorers. Partial scores are rewarded only with `graded`."""

from __future__ import annotations

import datetime
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from rlad.config import ReasoningGymPrompts
from rlad.contracts import Outcome
from rlad.data.prompts import load_prompts
from rlad.data.records import PromptRecord
from rlad.errors import ConfigError, DataError
from rlad.sandbox.scripts.reasoning_gym_scoring import evaluate, guarded_parser
from rlad.verifiers import Verifier, build_verifier
from rlad.verifiers.reasoning_gym import decode_entry, encode_entry

C, W, U = Outcome.CORRECT, Outcome.WRONG, Outcome.UNPARSEABLE


@pytest.fixture(scope="module")
def gym() -> Any:
    return pytest.importorskip(
        "reasoning_gym",
        reason="reasoning-gym is not installed; `make test` installs it if a C compiler is available, "
        "or run pip install 'rlad[reasoning-gym]'",
    )


def verifier(dataset: str, **settings: str) -> Verifier:
    return build_verifier({"name": "reasoning_gym", "dataset": dataset, **settings})


def problems(dataset: str, size: int = 4, **settings: Any) -> list[PromptRecord]:
    return load_prompts(ReasoningGymPrompts(dataset=dataset, size=size, split="train", seed=3, settings=settings))


@pytest.mark.usefixtures("gym")
@pytest.mark.parametrize(
    "dataset",
    [
        "chain_sum",
        "knights_knaves",
        "leg_counting",
        "mini_sudoku",
        "rearc",
        "zebra_puzzles",
        "calendar_arithmetic",
        "maze",
    ],
)
def test_tasks_own_answers_get_the_reward_and_those_of_other_problems_do_not(dataset: str) -> None:
    judge = verifier(dataset)
    records = problems(dataset, size=2)
    answers = [json.loads(record.answer)["answer"] for record in records]
    for record, own in zip(records, answers, strict=True):
        for answer in answers:
            verdict = judge.verify(f"<think>hm</think> So <answer>{answer}</answer>", record.answer)
            assert (verdict.reward, verdict.outcome) == ((1.0, C) if answer == own else (0.0, W))
        assert judge.verify(own, record.answer).outcome == U
        assert judge.verify(f"<answer>{own}</answer> no: <answer>x</answer>", record.answer).reward == 0.0
        assert judge.verify(f"<think><answer>{own}</answer></think>", record.answer).outcome == U


@pytest.mark.usefixtures("gym")
def test_partial_scores_are_rewarded_only_with_graded() -> None:
    [record] = problems("knights_knaves", size=1, n_people=3)
    entry = decode_entry(record.answer)
    own, terms = entry["answer"], entry["metadata"]["knight_knave_terms"]
    knight, knave = terms["knight"], terms["knave"]
    first, _, others = own.partition(",")
    partly = (
        f"<answer>{first.replace(knight, knave) if knight in first else first.replace(knave, knight)},{others}</answer>"
    )
    binary, graded = (
        verifier("knights_knaves").verify(partly, record.answer),
        verifier("knights_knaves", scoring="graded").verify(partly, record.answer),
    )
    assert (binary.reward, binary.outcome) == (0.0, W)
    # The scorer (reasoning_gym/logic/knights_knaves.py) gives 0.3 plus 0.7 times the fraction of correct roles.
    assert (graded.reward, graded.outcome) == (pytest.approx(0.3 + 0.7 * 2 / 3), W)
    assert verifier("knights_knaves", scoring="graded").verify(f"<answer>{own}</answer>", record.answer).reward == 1.0


@pytest.mark.usefixtures("gym")
def test_scorer_uses_the_settings_that_generated_the_problem() -> None:
    # puzzle24 rejects numbers outside of its range.
    record = next(
        record for record in problems("puzzle24", size=20) if "9" in record.prompt[1]["content"].splitlines()[0]
    )  # type: ignore[index]
    entry = decode_entry(record.answer)
    response = f"<answer>{entry['answer']}</answer>"
    assert verifier("puzzle24").verify(response, record.answer).outcome == C
    assert (
        verifier("puzzle24")
        .verify(response, encode_entry(entry, dataset="puzzle24", settings={"max_value": 8}))
        .outcome
        == W
    )


@pytest.mark.usefixtures("gym")
def test_answer_that_a_scorer_cannot_read_is_unparseable() -> None:
    [record] = problems("prime_factorization", size=1)
    assert verifier("prime_factorization").verify("<answer>seventeen</answer>", record.answer).outcome == U


@pytest.mark.usefixtures("gym")
def test_prompts_of_other_tasks_are_refused() -> None:
    [record] = problems("chain_sum", size=1)
    with pytest.raises(DataError, match="'chain_sum', but its verifier is that of 'leg_counting'"):
        verifier("leg_counting").verify("<answer>1</answer>", record.answer)


@pytest.mark.usefixtures("gym")
@pytest.mark.parametrize(
    ("dataset", "complaint"), [("chain_sums", "did you mean chain_sum"), ("composite", "no task 'composite'")]
)
def test_unknown_tasks_are_refused(dataset: str, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        verifier(dataset)


def test_error_of_a_missing_package_states_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    with pytest.raises(ConfigError, match=r"pip install 'rlad\[reasoning-gym\]'"):
        verifier("chain_sum")


def test_entries_round_trip_through_text() -> None:
    entry = {
        "answer": None,
        "metadata": {
            "grid": ((1, 2), (3, (4,))),
            "counts": {1: "a", (2, 3): ["b"]},
            "empty": {},
            "plain": [1.5, True, "x"],
        },
    }
    text = encode_entry(entry, dataset="any", settings={"range": (1, 2)})
    assert decode_entry(text) == {**entry, "dataset": "any", "settings": {"range": (1, 2)}}


def test_entries_that_cannot_be_encoded_are_refused() -> None:
    with pytest.raises(DataError, match="cannot be written as JSON"):
        encode_entry({"answer": "1", "metadata": {"day": datetime.date(2025, 1, 1)}}, dataset="any", settings={})


@pytest.mark.parametrize("text", ["", "3", "[]", '{"answer": "3"}'])
def test_answers_that_are_not_entries_are_refused(text: str) -> None:
    with pytest.raises(DataError, match="must be JSON with `answer` and `metadata`"):
        decode_entry(text)


ANSWERS = {
    "string_insertion": "[open({path!r}, 'w')] * 2",
    "spiral_matrix": "[open({path!r}, 'w')]",
    "binary_matrix": "[[open({path!r}, 'w')]]",
    "n_queens": "[[open({path!r}, 'w')]]",
    "countdown": "open({path!r}, 'w')",
    "puzzle24": "__import__('os').system('touch {path}')",
    "simple_integration": "open({path!r}, 'w')",
    "intermediate_integration": "exec(\"open({path!r}, 'w')\")",
}


@pytest.mark.usefixtures("gym")
@pytest.mark.parametrize("dataset", ANSWERS)
def test_answer_runs_no_code_and_writes_no_score(dataset: str, tmp_path: Path) -> None:
    [record] = problems(dataset, size=1)
    path = tmp_path / "written"
    judge = verifier(dataset)
    writes_score = "[__import__('os').write(1, b'{\"score\": 1.0}'), __import__('os')._exit(0)]"
    for answer in (ANSWERS[dataset].format(path=str(path)), writes_score):
        assert judge.verify(f"<answer>{answer}</answer>", record.answer).outcome in (W, U)
    assert not path.exists()
    own = decode_entry(record.answer)["answer"]
    if own is not None:
        # An integral that is only written down is no result, although a few problems have it as their own answer.
        expected = W if "Integral(" in own else C
        assert judge.verify(f"<answer>{own}</answer>", record.answer).outcome == expected


def test_formulas_are_parsed_and_everything_else_is_refused() -> None:
    from sympy.parsing.sympy_parser import parse_expr

    parse = guarded_parser(parse_expr)
    assert str(parse("2*x**2 + sin(x)/3 - 1.5")) == str(parse_expr("2*x**2 + sin(x)/3 - 1.5"))
    for text in ("open('x')", "x.__class__", "(lambda: 1)()", "[1]", "'x'", "print", "__name__", "f(1)", "(" * 9999):
        with pytest.raises(ValueError):  # noqa: PT011 - any reason
            parse(text)
    assert (evaluate("[[1, 'a'], (2,)]"), evaluate("2 * (3 + 4) // 5")) == ([[1, "a"], (2,)], 2)
    for text in ("len('a')", "[x for x in ()]", "'a' * 9", "(1).real", "open('x')", 5):
        with pytest.raises(ValueError):  # noqa: PT011
            evaluate(text)
