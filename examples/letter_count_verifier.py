"""Custom verifier: a Python function that compares a response with the expected answer.

A run calls it by its import path. The function must be importable on every node where verifier workers run:

    verifiers:
      letter_count: {name: python_function, path: "examples.letter_count_verifier:score"}

The key `letter_count` is the task: it is applied to the prompts whose `task` is `letter_count`
(examples/letter_count_prompts.py writes such prompts).
"""

from __future__ import annotations

import re

from rlad.contracts import Outcome
from rlad.verifiers import Verdict, build_verifier

_ANSWER = re.compile(r"answer:\s*(-?\d+)", re.IGNORECASE)


def score(response_text: str, answer: str) -> Verdict:
    """Return full reward for the right count, half for a count that is off by one.

    A verifier function returns a bool, a number (the reward) or a `Verdict` as here. It has no state, and needs no
    timeout of its own: the verifier pool kills a call that takes longer than `verifier_pool.timeout_s`.

    Args:
        response_text: text of the response, without the prompt.
        answer: the prompt record's `answer`.
    """
    counts = _ANSWER.findall(response_text)
    if not counts:
        return Verdict(reward=0.0, outcome=Outcome.UNPARSEABLE)
    distance = abs(int(counts[-1]) - int(answer))
    if distance == 0:
        return Verdict(reward=1.0, outcome=Outcome.CORRECT)
    return Verdict(reward=0.5 if distance == 1 else 0.0, outcome=Outcome.WRONG)


def main() -> None:
    """Load the verifier as a run does, and apply it to three responses."""
    verifier = build_verifier({"name": "python_function", "path": "examples.letter_count_verifier:score"})
    for response in ("s-t-r-a-w-b-e-r-r-y. Answer: 3", "I see two of them. Answer: 2", "Many."):
        verdict = verifier.verify(response, "3")
        print(f"{verdict.outcome.name:<11} reward={verdict.reward:.1f}  {response}")


if __name__ == "__main__":
    main()
