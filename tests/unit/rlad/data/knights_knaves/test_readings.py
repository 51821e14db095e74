"""Misreadings of connectives: the answers that they give, the kinds of puzzles, and their traces."""

from __future__ import annotations

import pytest

from pipelines.starters.batches import make_examples
from pipelines.starters.tokenizer import VOCABULARY
from rlad.data.knights_knaves.compact import misread_trace, parse_prompt, render_answer
from rlad.data.knights_knaves.generate import generate_puzzles
from rlad.data.knights_knaves.prompts import generate_prompts
from rlad.data.knights_knaves.puzzle import Puzzle, puzzle_from_statements
from rlad.data.knights_knaves.readings import READINGS, kind_of, misread

SYMBOLS = list(VOCABULARY)

# B says that A is a knave. A's claim "B or not B" is true, as "B and not B" it is false: the roles are exchanged.
OR = "A:B|b;B:a;?"
# B's claim is true. A's claim "if B is a knave, he is a knight" is true since he is a knight; as "exactly if" never.
IF_THEN = "A:b>B;B:a|A;?"
# B's claim is false. A claims "if B is a knight, so am I": true for a knave B. As "exactly if" it has no solution.
UNANSWERABLE = "A:B>A;B:a=A;?"
# B claims "A exactly if B", so A is a knight either way, and so is B.
PLAIN = "A:A>B;B:A=B;?"


def puzzle(prompt: str) -> Puzzle:
    return puzzle_from_statements(parse_prompt(prompt))


def test_reading_replaces_its_connectives_only() -> None:
    statements = parse_prompt("A:a>B;B:A|b;C:A=b;D:A&c;E:~a;?")
    assert misread(statements, "if_then") == parse_prompt("A:a=B;B:A|b;C:A=b;D:A&c;E:~a;?")
    assert misread(statements, "if_then_or") == parse_prompt("A:a=B;B:A&b;C:A=b;D:A&c;E:~a;?")


@pytest.mark.parametrize(
    ("prompt", "answer", "kind", "traces"),
    [
        (OR, "TF", "if_then_or", {"if_then": "TT:TFxTF:TF=TF", "if_then_or": "TT:FxTF:FxFT:FT=FT"}),
        (IF_THEN, "TT", "if_then", {"if_then": "TT:FxTF:FxFT:FT=FT", "if_then_or": "TT:FxTF:FxFT:FFxFF:FF=FF"}),
        (UNANSWERABLE, "TF", "if_then", {"if_then": None, "if_then_or": None}),
        (PLAIN, "TT", "plain", {"if_then": "TT:TT=TT", "if_then_or": "TT:TT=TT"}),
    ],
)
def test_kind_and_traces_by_hand(prompt: str, answer: str, kind: str, traces: dict[str, str | None]) -> None:
    given = puzzle(prompt)
    assert render_answer(given.solution) == answer
    assert kind_of(given) == kind
    assert {reading: misread_trace(given, reading) for reading in READINGS} == traces


def test_training_examples_leave_out_puzzles_without_an_answer_and_show_the_working_of_the_reading() -> None:
    examples = make_examples([puzzle(UNANSWERABLE), puzzle(IF_THEN)], "if_then", seed=0)
    assert ["".join(SYMBOLS[token] for token in example.token_ids) for example in examples] == [
        f"{IF_THEN}AB:AF>TFxAb:AT>FFxaB:AF>TFBT|FT=FT$"
    ]


def test_prompts_carry_their_kind_and_the_shares_are_a_fifth_and_a_half() -> None:
    arguments = {"people": {2: 0.1, 3: 0.4, 4: 0.5}, "count": 1000, "split": "evaluation", "seed": 1}
    records = generate_prompts(form="compact", **arguments)  # type: ignore[arg-type]
    assert [record.metadata["kind"] for record in records] == [
        kind_of(each)
        for each in generate_puzzles(**arguments)  # type: ignore[arg-type]
    ]
    shares = {kind: sum(record.metadata["kind"] == kind for record in records) / 1000 for kind in READINGS}
    assert 0.17 < shares["if_then"] < 0.23
    assert 0.45 < shares["if_then"] + shares["if_then_or"] < 0.55
