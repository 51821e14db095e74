"""Prompts of natural-language arithmetic, which a language model of 135 million parameters can learn.

    .venv/bin/python -m examples.real_models.arithmetic build/smollm2/arithmetic.jsonl

The file has one JSON object a line: a conversation of two worked examples and a question, a short story with two
numbers, and the number that answers it. A run takes its training prompts and its held-out evaluation prompts from the
same file, with `split` and `evaluation_share`.
"""

from __future__ import annotations

import argparse
import operator
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rlad.data.prompt_files import write_prompt_file
from rlad.data.records import PromptRecord

TASK = "arithmetic"
NAMES = ("Anna", "Ben", "Clara", "David", "Emma", "Farid", "Grace", "Hugo", "Ines", "Jonas", "Kavya", "Leo")
THINGS = ("apples", "books", "marbles", "stamps", "cookies", "pencils", "shells", "stickers", "coins", "flowers")


# Two worked examples come before each question. Without them, a model of this size answers hardly any question.
EXAMPLES = (
    {"role": "user", "content": "Tom has 14 pens and buys 5 more. How many pens does he have now?"},
    {"role": "assistant", "content": "Tom has 14 pens and gets 5 more: 14 + 5 = 19. The answer is 19."},
    {"role": "user", "content": "Mia has 27 cards and loses 6 of them. How many cards are left?"},
    {"role": "assistant", "content": "Mia has 27 cards and loses 6: 27 - 6 = 21. The answer is 21."},
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Story:
    """One kind of problem.

    Attributes:
        operation: Value of the metadata key `operation`, by which evaluation groups its table.
        text: Template with the fields `name`, `other`, `things`, `a` and `b`.
        answer: Function of `a` and `b`.
        first: Smallest and largest value of `a`.
        second: Smallest and largest value of `b`.
    """

    operation: str
    text: str
    answer: Callable[[int, int], int]
    first: tuple[int, int]
    second: tuple[int, int]


STORIES = (
    Story(
        operation="addition",
        text="{name} has {a} {things}. {other} gives {name} {b} more. How many {things} does {name} have now?",
        answer=operator.add,
        first=(10, 60),
        second=(3, 30),
    ),
    Story(
        operation="subtraction",
        text="{name} has {a} {things} and gives {b} of them to {other}. How many {things} are left?",
        answer=operator.sub,
        first=(31, 60),
        second=(3, 30),
    ),
    Story(
        operation="multiplication",
        text="{name} buys {a} bags with {b} {things} in each bag. How many {things} does {name} buy?",
        answer=operator.mul,
        first=(2, 9),
        second=(3, 12),
    ),
)


def make_records(count: int, seed: int = 0) -> list[PromptRecord]:
    """Return different problems, in equal parts of each story.

    Args:
        count: Number of problems.
        seed: Seed of the random choice.
    """
    chance = random.Random(seed)
    records: dict[str, PromptRecord] = {}
    while len(records) < count:
        story = STORIES[len(records) % len(STORIES)]
        name, other = chance.sample(NAMES, 2)
        a, b = chance.randint(*story.first), chance.randint(*story.second)
        question = story.text.format(name=name, other=other, things=chance.choice(THINGS), a=a, b=b)
        if question not in records:
            records[question] = PromptRecord(
                id=f"{TASK}-{len(records)}",
                prompt=(*EXAMPLES, {"role": "user", "content": question}),
                task=TASK,
                answer=str(story.answer(a, b)),
                metadata={"operation": story.operation},
            )
    return list(records.values())


def main() -> None:
    """Write the prompt file."""
    parser = argparse.ArgumentParser(description="Write problems of natural-language arithmetic as JSONL.")
    parser.add_argument("path", type=Path, help="File to write, for example build/smollm2/arithmetic.jsonl.")
    parser.add_argument("--count", type=int, default=4000, help="Number of problems.")
    parser.add_argument("--seed", type=int, default=0, help="Seed of the random choice.")
    arguments = parser.parse_args()
    arguments.path.parent.mkdir(parents=True, exist_ok=True)
    records = make_records(arguments.count, arguments.seed)
    write_prompt_file(records, arguments.path)
    print(f"{arguments.path}: {len(records)} problems")


if __name__ == "__main__":
    main()
