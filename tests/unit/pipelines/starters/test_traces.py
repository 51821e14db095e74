"""Traces with intermediate steps."""

from __future__ import annotations

import random

from pipelines.starters.tokenizer import encode
from pipelines.starters.traces import longest_trace, show_working
from rlad.data.knights_knaves.compact import careless_trace, parse_prompt, render_answer, solution_trace
from rlad.data.knights_knaves.generate import generate_puzzles
from rlad.data.knights_knaves.puzzle import Puzzle, candidates, evaluate, puzzle_from_statements
from rlad.verifiers import build_verifier

PUZZLES = generate_puzzles(people={2: 0.2, 3: 0.4, 4: 0.4}, count=400, split="train", seed=7)


def _shown(prompt: str) -> str:
    puzzle = puzzle_from_statements(parse_prompt(prompt))
    return show_working(puzzle, solution_trace(puzzle))


def test_intermediate_steps_of_puzzles_solved_by_hand() -> None:
    assert _shown("A:c|B;B:c>a;C:B|b;?") == "ABC:AF|TTBF>FTCT|FT=TTT"
    # Candidate AB fails, because the knight A would lie. In candidate Ab, the knave B lies with "A if and only if B".
    assert _shown("A:b;B:A=B;?") == "AB:AFxAb:ATBT?FF=TF"
    assert _shown("A:~C;B:~c;C:A>b;?") == "ABC:A~TFxABc:A~FTB~TFxAbC:A~TFxAbc:A~FTB~TFCT>TTxaBC:A~TFB~FTCF>FT=FTT"


def _slow_trace(puzzle: Puzzle) -> str:
    """Return the expected trace, derived from the statements instead of the compact trace."""
    letters = "ABCD"
    symbols = {"and": "&", "or": "|", "->": ">", "<=>": "?"}
    text = ""
    for candidate in candidates(puzzle.num_people):
        text += (
            "".join(letter if knight else letter.lower() for letter, knight in zip(letters, candidate, strict=False))
            + ":"
        )
        for speaker, statement in enumerate(puzzle.statements):
            kind, *operands = statement
            value = evaluate(statement, candidate)
            truths = ["FT"[evaluate(operand, candidate)] for operand in operands if isinstance(operand, tuple)]
            working = {0: "", 1: "~" + "".join(truths), 2: symbols.get(kind, "").join(truths)}[len(truths)]
            text += letters[speaker] + working + "FT"[value]
            if value != candidate[speaker]:
                text += "x"
                break
        else:
            return text + "=" + "".join("FT"[knight] for knight in candidate)
    raise AssertionError("no solution")


def test_expanded_trace_equals_the_one_derived_from_the_statements() -> None:
    for puzzle in PUZZLES:
        assert show_working(puzzle, solution_trace(puzzle)) == _slow_trace(puzzle)


def test_verifiers_read_the_answer_of_correct_and_careless_traces() -> None:
    """`=` occurs once, for all connectives."""
    verifier = build_verifier({"name": "knights_knaves", "form": "compact"})
    rng = random.Random(0)
    for puzzle in PUZZLES:
        answer, careless = render_answer(puzzle.solution), careless_trace(puzzle, rng)
        assert verifier.verify(show_working(puzzle, solution_trace(puzzle)) + "$", answer).reward == 1.0
        assert verifier.verify(show_working(puzzle, careless) + "$", answer) == verifier.verify(careless, answer)


def test_responses_respect_the_alphabet_and_the_maximum_length() -> None:
    rng = random.Random(1)
    for puzzle in PUZZLES:
        for trace in (solution_trace(puzzle), careless_trace(puzzle, rng)):
            assert len(encode(show_working(puzzle, trace) + "$")) <= longest_trace(puzzle.num_people)


def test_maximum_length_is_reached_if_candidates_fail_at_their_last_statement() -> None:
    for num_people, people in ((2, "AB"), (3, "ABC"), (4, "ABCD")):
        failing = people + ":" + "".join(speaker + "T|TT" for speaker in people) + "x"
        assert longest_trace(num_people) == len(failing * 2**num_people) - 1 + len("=" + "T" * num_people + "$")
