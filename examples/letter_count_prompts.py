"""Custom prompt file: a script that writes one JSON object per line.

A run reads the file with

    prompts: {source: file, path: letter_count.jsonl}
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path

from rlad.data.prompt_files import read_prompt_file, write_prompt_file
from rlad.data.records import PromptRecord

WORDS = ("strawberry", "bookkeeper", "mississippi", "committee", "parallel", "onomatopoeia", "rhythm", "banana")


def make_records(count: int, seed: int) -> list[PromptRecord]:
    """Return prompts that ask how often a letter occurs in a word.

    A record has five fields. `id` is unique in the file. `prompt` is plain text, or a list of chat messages to
    which the tokenizer's chat template is applied. `task` selects the verifier, and `answer` is the text that the
    verifier compares with. `metadata` is free; `evaluation.group_by` names one of its keys to group results by.
    """
    pairs = [(word, letter) for word in WORDS for letter in sorted(set(word))]
    chosen = random.Random(seed).sample(pairs, min(count, len(pairs)))
    return [
        PromptRecord(
            id=f"{word}-{letter}",
            prompt=(
                {"role": "system", "content": "Think step by step. End with `Answer: N`."},
                {"role": "user", "content": f"How often does the letter {letter} occur in the word {word}?"},
            ),
            task="letter_count",
            answer=str(word.count(letter)),
            metadata={"length": len(word)},
        )
        for word, letter in chosen
    ]


def main() -> None:
    """Write the file and read it back, which checks it as a run does."""
    parser = argparse.ArgumentParser(description="Write prompts of the letter-counting task as JSONL.")
    parser.add_argument("path", type=Path, help="File to write, for example letter_count.jsonl.")
    parser.add_argument("--count", type=int, default=40, help="Number of prompts.")
    parser.add_argument("--seed", type=int, default=0, help="Seed of the random choice.")
    arguments = parser.parse_args()
    write_prompt_file(make_records(arguments.count, arguments.seed), arguments.path)
    records = read_prompt_file(arguments.path)
    print(f"{arguments.path}: {len(records)} prompts, the first is {records[0].id}")


if __name__ == "__main__":
    main()
