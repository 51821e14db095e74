"""The reward of the step benchmark, the same function in both frameworks."""

from __future__ import annotations


def share_of_even_words(response_text: str, answer: str) -> float:
    """Of words `w12`: differs between the responses of a group whatever the model is, so that none is left out of the update."""
    words = response_text.split()
    return sum(word[-1] in "02468" for word in words) / max(1, len(words))
