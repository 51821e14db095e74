"""Votes of a majority vote: answers that mean the same are one vote, though they are written differently."""

from __future__ import annotations

from collections.abc import Callable, Sequence

CompareAnswers = Callable[[str, Sequence[str]], Sequence[bool]]
"""Compares one answer with others: True for each that means the same."""


def merge_votes(answers: Sequence[str | None], compare: CompareAnswers) -> list[str | None]:
    """Replace answers that mean the same by one of them, the first in order.

    Votes are the transitive closure of `compare`: if A equals B and B equals C, all three are one vote, even if
    `compare` tells A and C apart, as a tolerance for decimals can. The result does not depend on the order in which
    classes grow. Equal texts are never compared, so `compare` sees each pair of distinct texts at most once.

    Args:
        answers: Answer of each response; None for a response without one, which stays None.
        compare: Called with each distinct answer and the distinct answers before it.
    """
    distinct = list(dict.fromkeys(answer for answer in answers if answer is not None))
    first_of = {answer: answer for answer in distinct}
    for index, answer in enumerate(distinct[1:], start=1):
        earlier = distinct[:index]
        for other, is_equal in zip(earlier, compare(answer, earlier), strict=True):
            if is_equal and first_of[other] != first_of[answer]:
                joined = {first_of[other], first_of[answer]}
                first = next(each for each in distinct if each in joined)
                first_of |= {each: first for each in distinct if first_of[each] in joined}
    return [None if answer is None else first_of[answer] for answer in answers]
