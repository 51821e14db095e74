"""Reward of the step benchmark, the same function in both frameworks."""

from __future__ import annotations


def share_of_even_words(response_text: str, answer: str) -> float:
    """Return the share of words such as `w12` that end in an even digit.

    It differs between the responses of a group for any model, so that every group takes part in the update.
    """
    words = response_text.split()
    return sum(word[-1] in "02468" for word in words) / max(1, len(words))
