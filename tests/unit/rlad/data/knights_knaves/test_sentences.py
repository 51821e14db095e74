"""Language of the set: parsing of all its quizzes, and round trips of rendered quizzes."""

from __future__ import annotations

import ast
import random
import re
from collections.abc import Sequence
from typing import Any

import pytest

from rlad.data.knights_knaves import sentences
from rlad.data.knights_knaves.compact import parse_prompt
from rlad.data.knights_knaves.generate import generate_puzzles
from rlad.data.knights_knaves.puzzle import puzzle_from_statements
from rlad.errors import DataError

QUIZ = (
    "A very special island is inhabited only by knights and knaves. Knights always tell the truth, and knaves always "
    "lie. "
    "You meet 2 inhabitants: Zoey, and Jackson. "
    '"Jackson is a knave" - Zoey. Jackson told you that Zoey is a knight if and only if Jackson is a knight. So who '
    "is a knight and who is a knave?"
)


def test_handwritten_quiz_is_parsed() -> None:
    puzzle = sentences.parse_quiz(QUIZ)
    assert puzzle.names == ("Zoey", "Jackson")
    assert puzzle.statements == (("lying", 1), ("<=>", ("telling-truth", 0), ("telling-truth", 1)))
    assert puzzle.solution == (True, False)


def test_every_real_quiz_parses_to_its_statements_names_and_solution(real_rows: list[dict[str, Any]]) -> None:
    for row in real_rows:
        puzzle = sentences.parse_quiz(row["quiz"])
        assert puzzle.statements == ast.literal_eval(row["statements"])
        assert list(puzzle.names or ()) == row["names"]
        assert list(puzzle.solution) == row["solution"]
        assert sentences.render_answer(row["names"], puzzle.solution) == row["solution_text_format"]


def shape(quiz: str, names: Sequence[str]) -> tuple[str, list[str]]:
    """Return the frame of a quiz and the phrases, with N for names and C for claims. Independent of the package."""
    quiz = re.sub(rf"\b({'|'.join(names)})\b", "N", quiz)
    role = "a kn(?:ight|ave)"
    quiz = re.sub(rf"(?:If )?N is (?:not )?{role}(?: (?:and|or|then|if and only if) N is {role})?", "C", quiz)
    opening, told, question = re.fullmatch(r"(.*inhabitants: [N, and]+\. )(.*)( So .*)", quiz).groups()  # type: ignore[union-attr]
    tellings = re.findall(r'"C," N \w+\.|"C" - N\.|[AI][^"]*"C"\.|N [^".]*"C\.?"\.?|N [^".]* C\.', told)
    assert " ".join(tellings) == told
    return opening + question, tellings


def test_rendered_sentences_are_exactly_those_of_the_set(real_rows: list[dict[str, Any]]) -> None:
    rng = random.Random(0)
    real_frames, real_tellings, our_frames, our_tellings = set(), set(), set(), set()
    for row in real_rows:
        frame, tellings = shape(row["quiz"], row["names"])
        real_frames.add(frame)
        real_tellings |= set(tellings)
        frame, tellings = shape(
            sentences.render_quiz(puzzle_from_statements(row["statements"], row["names"]), rng), row["names"]
        )
        our_frames.add(frame)
        our_tellings |= set(tellings)
    assert our_frames == real_frames
    assert our_tellings == real_tellings
    assert len(real_tellings) == 18


def test_names_and_instruction_equal_those_of_the_set(real_rows: list[dict[str, Any]]) -> None:
    assert {name for row in real_rows for name in row["names"]} == set(sentences.NAMES)
    for row in real_rows:
        system, user = sentences.render_messages(row["quiz"])
        templated = (
            f"<|im_start|>system\n{system['content']}\n<|im_end|>\n"
            f"<|im_start|>user\n{user['content']}\n<|im_end|>\n<|im_start|>assistant\n<think>"
        )
        assert row["prompt"][0]["content"] == templated


def test_generated_puzzles_of_all_sizes_round_trip() -> None:
    rng = random.Random(0)
    for puzzle in generate_puzzles(people=dict.fromkeys(range(2, 9), 1), count=700, split="train", seed=0):
        named = sentences.with_names(puzzle, rng)
        assert sentences.parse_quiz(sentences.render_quiz(named, rng)) == named


def test_puzzle_without_names_cannot_be_rendered() -> None:
    with pytest.raises(DataError, match="requires names"):
        sentences.render_quiz(puzzle_from_statements(parse_prompt("A:b;B:A=B;?")), random.Random(0))


@pytest.mark.parametrize(
    ("before", "after", "complaint"),
    [
        ("A very special island", "An island", "must open with"),
        ("So who is a knight", "Who is a knight", "and end with"),
        ("2 inhabitants", "3 inhabitants", "announces 3"),
        ("Jackson told you", "Liam told you", "statement by Jackson"),
        ("told you that", "sang that", "statement by Jackson"),
        ("Jackson is a knave", "Liam is a knave", "'Liam is a knave'"),
        ("Jackson is a knave", "Jackson is a spy", "'Jackson is a spy'"),
        ("is a knight if and only if Jackson is a knight", "is a knave", "has 2"),
        (". So who", ". Jackson said that Zoey is a knave. So who", "after the last person's statement"),
    ],
)
def test_text_outside_the_language_is_refused(before: str, after: str, complaint: str) -> None:
    assert before in QUIZ
    with pytest.raises(DataError, match=complaint):
        sentences.parse_quiz(QUIZ.replace(before, after))
