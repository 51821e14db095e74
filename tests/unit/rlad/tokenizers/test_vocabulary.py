"""A teacher must have every token of the student under the same id; it may have more."""

from __future__ import annotations

from dataclasses import replace

import pytest

from rlad.data.chat import prefix_fingerprints, tokenizer_fingerprint
from rlad.teacher.wire_format import TeacherIdentity
from rlad.tokenizers.vocabulary import Vocabulary, scoring_problem, vocabulary_of

from .chat_tokenizer import LETTERS, SPECIAL, chat_tokenizer

STUDENT = Vocabulary(ids={"a": 0, "b": 1, "c": 2}, model="m")


@pytest.mark.parametrize(
    ("ids", "problem"),
    [
        ({"a": 0, "b": 1, "c": 2}, None),
        ({"a": 0, "b": 1, "c": 2, "<think>": 3}, None),
        ({"a": 0, "b": 1}, "1 tokens of the student differ at the teacher: 2 is 'c' and nothing"),
        ({"a": 0, "b": 2, "c": 1}, "2 tokens of the student differ at the teacher: 1 is 'b' and 'c', 2 is 'c' and 'b'"),
        ({"a": 5, "b": 1, "c": 2}, "1 tokens of the student differ at the teacher: 0 is 'a' and nothing"),
    ],
)
def test_the_students_tokens_are_compared(ids: dict[str, int], problem: str | None) -> None:
    assert scoring_problem(STUDENT, Vocabulary(ids=ids, model="m")) == problem


def test_five_of_many_differing_tokens_are_named() -> None:
    student = Vocabulary(ids={str(number): number for number in range(9)}, model="m")
    problem = scoring_problem(student, Vocabulary(ids={}, model="m"))
    assert problem is not None
    assert problem.endswith("4 is '4' and nothing and 4 more")


def test_another_tokenization_model_is_refused() -> None:
    assert "merges or scores" in str(scoring_problem(STUDENT, replace(STUDENT, model="other")))


@pytest.mark.parametrize(("rows", "is_refused"), [(2, True), (3, False), (64, False), (None, False)])
def test_the_teacher_needs_a_row_for_each_token_of_the_student(rows: int | None, is_refused: bool) -> None:
    assert (scoring_problem(STUDENT, STUDENT, teacher_rows=rows) is not None) == is_refused


def test_tokens_beyond_the_output_layer_do_not_count() -> None:
    student = Vocabulary(ids={"a": 0, "b": 1, "<step>": 2}, model="m")
    teacher = Vocabulary(ids={"a": 0, "b": 1}, model="m")
    assert scoring_problem(student, teacher) is not None
    assert scoring_problem(student.within(2), teacher, teacher_rows=2) is None


def test_vocabulary_of_a_tokenizer_includes_added_tokens() -> None:
    tokenizer = chat_tokenizer(None)
    tokens = vocabulary_of(tokenizer)
    assert (tokens.ids["<eos>"], tokens.size) == (1, len(SPECIAL) + len(LETTERS))
    tokenizer.add_tokens(["<think>"])
    more = vocabulary_of(tokenizer)
    assert (more.size, more.ids["<think>"]) == (tokens.size + 1, tokens.size)
    assert scoring_problem(tokens, more) is None
    assert scoring_problem(more, tokens) is not None


def test_a_shared_teacher_accepts_students_without_its_last_added_tokens() -> None:
    student, between, teacher = (chat_tokenizer(None) for _ in range(3))
    between.add_tokens(["<tool>"])
    teacher.add_tokens(["<tool>", "<think>"])
    identity = TeacherIdentity(
        teacher="t",
        tokenizer=tokenizer_fingerprint(teacher),
        engine="vllm",
        vocabulary=128,
        max_groups_per_client=1,
        shares_ids_with=prefix_fingerprints(teacher),
    )
    for accepted in (student, between, teacher):
        assert identity.reads(tokenizer_fingerprint(accepted))
    other, longer = chat_tokenizer(None), chat_tokenizer(None)
    other.add_tokens(["<think>"])
    longer.add_tokens(["<tool>", "<think>", "<more>"])
    for refused in (other, longer):
        assert not identity.reads(tokenizer_fingerprint(refused))


def test_tokens_below_the_last_added_ones_are_never_left_out() -> None:
    tokenizer = chat_tokenizer(None)  # its special tokens are added ones, but letters have larger ids
    assert prefix_fingerprints(tokenizer) == ()
