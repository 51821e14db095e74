"""Prompt records of generated Knights & Knaves puzzles and of rows of the K&K set, in both forms."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from rlad.data.knights_knaves import compact, sentences
from rlad.data.knights_knaves.generate import Split, generate_puzzles, puzzle_digest, split_of
from rlad.data.knights_knaves.puzzle import Puzzle, puzzle_from_statements
from rlad.data.knights_knaves.readings import kind_of
from rlad.data.records import PromptRecord
from rlad.errors import DataError

Form = Literal["sentences", "compact"]

TASK = "knights_knaves"

SET_COLUMNS = ("quiz", "names", "statements", "solution")


def generate_prompts(
    *, form: Form, people: Mapping[int, float], count: int, split: Split, seed: int
) -> list[PromptRecord]:
    """Return the prompts of `generate_puzzles(...)`.

    Names and wording are a function of the seed and the puzzle. A repeated puzzle gets other names and wording.

    Raises:
        DataError: See `generate_puzzles`.
    """
    records = []
    uses: Counter[str] = Counter()
    for puzzle in generate_puzzles(people=people, count=count, split=split, seed=seed):
        digest = puzzle_digest(puzzle)
        repeat = uses[digest]
        uses[digest] += 1
        record_id = f"kk{puzzle.num_people}-{digest}" + (f"-{repeat}" if repeat else "")
        quiz = None
        if form == "sentences":
            rng = random.Random(f"{seed}:{digest}:{repeat}")
            puzzle = sentences.with_names(puzzle, rng)
            quiz = sentences.render_quiz(puzzle, rng)
        records.append(_record(record_id, puzzle, quiz))
    return records


def is_knights_knaves_set(columns: Sequence[str]) -> bool:
    """Return True if the columns include those of the K&K set's parquet files."""
    return set(SET_COLUMNS) <= set(columns)


def record_of_set_row(row: Mapping[str, Any], form: Form) -> PromptRecord:
    """Return a row of the K&K set as a prompt.

    The row's own `prompt` column is not used, because it contains an applied chat template.

    Raises:
        DataError: A value is missing, or the statements do not have the row's solution.
    """
    missing = [name for name in SET_COLUMNS if row[name] is None]
    if missing:
        raise DataError(f"missing {', '.join(missing)}; a row of the K&K set requires {', '.join(SET_COLUMNS)}")
    puzzle = puzzle_from_statements(row["statements"], row["names"])
    if list(puzzle.solution) != row["solution"]:
        raise DataError(
            f"the file's solution {row['solution']} differs from that of its statements, {list(puzzle.solution)}"
        )
    return _record(
        f"kk{puzzle.num_people}-{puzzle_digest(puzzle)}", puzzle, row["quiz"] if form == "sentences" else None
    )


def _record(record_id: str, puzzle: Puzzle, quiz: str | None) -> PromptRecord:
    """Return a puzzle as a record, in sentences with a quiz and in compact notation without."""
    prompt = compact.render_prompt(puzzle)
    metadata = {
        "people": puzzle.num_people,
        "puzzle": prompt,
        "split": split_of(puzzle),
        "kind": kind_of(puzzle),
    }
    if quiz is None:
        return PromptRecord(
            id=record_id, prompt=prompt, task=TASK, answer=compact.render_answer(puzzle.solution), metadata=metadata
        )
    answer = sentences.render_answer(puzzle.names or (), puzzle.solution)
    return PromptRecord(
        id=record_id, prompt=sentences.render_messages(quiz), task=TASK, answer=answer, metadata=metadata
    )
