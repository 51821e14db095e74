"""Answers that mean the same are one vote, regardless of their order."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from rlad.evaluation.accuracy import majority_vote
from rlad.evaluation.votes import merge_votes

NEAR = {("1", "2"), ("2", "1"), ("2", "3"), ("3", "2")}  # 1 and 3 are not near


def compare_near(answer: str, others: Sequence[str]) -> list[bool]:
    return [(answer, other) in NEAR for other in others]


def test_votes_are_the_transitive_closure_in_every_order() -> None:
    for order in itertools.permutations(["1", "2", "3", "9"]):
        first = next(answer for answer in order if answer != "9")
        merged = merge_votes(order, compare_near)
        assert merged == ["9" if answer == "9" else first for answer in order]


def test_each_pair_of_distinct_answers_is_compared_once_and_missing_answers_never() -> None:
    compared: list[tuple[str, str]] = []

    def compare(answer: str, others: Sequence[str]) -> list[bool]:
        compared.extend((answer, other) for other in others)
        return [False] * len(others)

    assert merge_votes(["a", None, "b", "a", "c", "b"], compare) == ["a", None, "b", "a", "c", "b"]
    assert compared == [("b", "a"), ("c", "a"), ("c", "b")]


def test_split_vote_wins_once_its_answers_are_merged() -> None:
    rewards = (1, 1, 0, 0, 0)
    answers = ("9", "9", "1", "2", "3")
    assert majority_vote(answers, rewards) == 1.0
    assert majority_vote(merge_votes(answers, compare_near), rewards) == 0.0
