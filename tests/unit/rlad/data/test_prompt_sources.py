"""Prompts from generated puzzles, JSONL, parquet, and the K&K set's own files."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from rlad.config import KnightsKnavesPrompts, PromptFile
from rlad.data.knights_knaves import sentences
from rlad.data.knights_knaves.compact import parse_prompt, render_answer
from rlad.data.knights_knaves.puzzle import puzzle_from_statements
from rlad.data.knights_knaves.readings import kind_of
from rlad.data.prompt_files import read_knights_knaves_set, read_prompt_file, write_prompt_file
from rlad.data.prompts import load_prompts
from rlad.data.records import PromptRecord, dataset_fingerprint
from rlad.errors import DataError

TEXT_ROW = {"id": "a", "prompt": "1+1=", "task": "arithmetic", "answer": "2"}
CHAT_ROW = {
    "id": 7,
    "prompt": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "1+1?"}],
    "task": "arithmetic",
    "answer": "2",
    "metadata": {"level": 1},
}


def write_jsonl(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def puzzles(**settings: Any) -> KnightsKnavesPrompts:
    return KnightsKnavesPrompts(
        **{"people": {2: 1, 3: 1}, "count": 20, "split": "train", "form": "compact", **settings}
    )


def test_generated_compact_prompts_carry_their_solution() -> None:
    records = load_prompts(puzzles())
    assert len({record.id for record in records}) == 20
    for record in records:
        assert isinstance(record.prompt, str)
        puzzle = puzzle_from_statements(parse_prompt(record.prompt))
        assert record.answer == render_answer(puzzle.solution)
        assert record.task == "knights_knaves"
        assert record.metadata == {
            "people": puzzle.num_people,
            "puzzle": record.prompt,
            "split": "train",
            "kind": kind_of(puzzle),
        }


def test_both_forms_have_the_same_puzzles_in_the_same_order() -> None:
    told = load_prompts(puzzles(form="sentences", seed=4))
    compact = load_prompts(puzzles(form="compact", seed=4))
    assert [record.id for record in told] == [record.id for record in compact]
    for sentence_record, compact_record in zip(told, compact, strict=True):
        system, user = sentence_record.prompt
        assert system == {"role": "system", "content": sentences.INSTRUCTION}
        puzzle = sentences.parse_quiz(user["content"])  # type: ignore[index]
        assert puzzle.statements == parse_prompt(compact_record.prompt)  # type: ignore[arg-type]
        assert sentence_record.answer == sentences.render_answer(puzzle.names or (), puzzle.solution)
    assert told == load_prompts(puzzles(form="sentences", seed=4))


def test_repeated_puzzles_have_distinct_ids_and_wording() -> None:
    records = load_prompts(puzzles(people={2: 1}, count=400, form="sentences"))
    assert len({record.id for record in records}) == 400
    assert len({record.metadata["puzzle"] for record in records}) == 288
    assert len({record.prompt[1]["content"] for record in records}) == 400  # type: ignore[index]


def test_jsonl_rows_become_records(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "prompts.jsonl", TEXT_ROW, CHAT_ROW)
    first, second = load_prompts(PromptFile(path=str(path)))
    assert first == PromptRecord(id="a", prompt="1+1=", task="arithmetic", answer="2")
    assert second == PromptRecord(
        id="7", prompt=tuple(CHAT_ROW["prompt"]), task="arithmetic", answer="2", metadata={"level": 1}
    )


def test_parquet_and_jsonl_rows_become_the_same_records(tmp_path: Path) -> None:
    rows = [{**CHAT_ROW, "id": "1"}, {**CHAT_ROW, "id": "2", "answer": "3"}]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "prompts.parquet")
    assert read_prompt_file(tmp_path / "prompts.parquet") == read_prompt_file(
        write_jsonl(tmp_path / "prompts.jsonl", *rows)
    )


def test_limit_reads_only_the_first_rows(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text(json.dumps(TEXT_ROW) + "\n" + json.dumps({**TEXT_ROW, "id": "b"}) + "\nthis line is broken\n")
    assert [record.id for record in load_prompts(PromptFile(path=str(path), limit=2))] == ["a", "b"]


def test_written_records_are_read_back_equal(tmp_path: Path) -> None:
    records = [*load_prompts(puzzles(form="sentences")), *load_prompts(puzzles(people={4: 1}))]
    write_prompt_file(records, tmp_path / "puzzles.jsonl")
    assert read_prompt_file(tmp_path / "puzzles.jsonl") == records


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        ({"id": "b", "prompt": "x", "task": "t"}, "missing answer"),
        ({**TEXT_ROW, "id": "b", "answer": None}, "missing answer"),
        ({**TEXT_ROW, "id": "b", "answer": ""}, "missing answer"),
        ({**TEXT_ROW, "id": "b", "answer": float("inf")}, "expected a finite number"),
        ({**TEXT_ROW, "id": True}, "id must be text"),
        ({**TEXT_ROW, "id": "b", "prompt": "\ud83d"}, "lone surrogate"),
        ({**TEXT_ROW, "id": ""}, "id must be text"),
        ({**TEXT_ROW, "id": "b", "prompt": " "}, "the prompt is empty"),
        ({**TEXT_ROW, "id": "b", "prompt": []}, "text or a list of messages"),
        ({**TEXT_ROW, "id": "b", "prompt": [{"role": "user"}]}, "`role` and `content`"),
        ({**TEXT_ROW, "id": "b", "prompt": ["hello"]}, "`role` and `content`"),
        (
            {**TEXT_ROW, "id": "b", "prompt": [{"role": "assistant", "content": "2"}]},
            "the last message has role `assistant`",
        ),
        ({**TEXT_ROW, "id": "b", "metadata": "x"}, "metadata must be a mapping"),
        (TEXT_ROW, "id 'a' was used before"),
    ],
)
def test_invalid_rows_are_refused_with_file_and_line(tmp_path: Path, row: dict[str, Any], complaint: str) -> None:
    path = write_jsonl(tmp_path / "prompts.jsonl", TEXT_ROW, row)
    with pytest.raises(DataError, match=complaint) as refusal:
        read_prompt_file(path)
    assert str(refusal.value).startswith(f"{path}, line 2: ")


def test_invalid_parquet_rows_are_refused_with_their_row(tmp_path: Path) -> None:
    path = tmp_path / "prompts.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([TEXT_ROW, {**TEXT_ROW, "answer": "3"}]), path)
    with pytest.raises(DataError, match="row 2: id 'a' was used before"):
        read_prompt_file(path)


def test_unreadable_files_are_refused(tmp_path: Path) -> None:
    broken, empty, not_utf8, parquet = (
        tmp_path / name for name in ("broken.jsonl", "empty.jsonl", "bytes.jsonl", "broken.parquet")
    )
    broken.write_text(json.dumps(TEXT_ROW) + '\n{"id": "b", \n')
    empty.write_text("\n")
    not_utf8.write_bytes(b'{"id": "\xff"}\n')
    parquet.write_bytes(b"nothing of the kind")
    with pytest.raises(DataError, match=r"broken.jsonl, line 2: not valid JSON"):
        read_prompt_file(broken)
    with pytest.raises(DataError, match="holds no prompts"):
        read_prompt_file(empty)
    with pytest.raises(DataError, match=r"bytes.jsonl, line 1: not valid JSON"):
        read_prompt_file(not_utf8)
    with pytest.raises(DataError, match="not a readable parquet file"):
        read_prompt_file(parquet)
    with pytest.raises(DataError, match="no prompt file at"):
        read_prompt_file(tmp_path / "missing.jsonl")
    with pytest.raises(DataError, match=r"must be \.jsonl or \.parquet"):
        read_prompt_file(Path(__file__))


def test_real_set_is_a_valid_prompt_file(knights_knaves_files: list[Path], real_rows: list[dict[str, Any]]) -> None:
    records = [record for path in knights_knaves_files for record in load_prompts(PromptFile(path=str(path)))]
    for record, row in zip(records, real_rows, strict=True):
        assert record.prompt == sentences.render_messages(row["quiz"])
        assert record.answer == row["solution_text_format"]
        assert record.metadata["people"] == len(row["names"])
    assert len({record.id for record in records}) == 400


def test_real_set_can_be_read_in_compact_notation(
    knights_knaves_files: list[Path], real_rows: list[dict[str, Any]]
) -> None:
    records = [record for path in knights_knaves_files for record in read_knights_knaves_set(path, "compact")]
    for record, row in zip(records, real_rows, strict=True):
        assert puzzle_from_statements(parse_prompt(record.prompt)) == puzzle_from_statements(row["statements"])  # type: ignore[arg-type]
        assert record.answer == "".join("FT"[role] for role in row["solution"])


def test_set_row_with_another_solution_is_refused(tmp_path: Path, real_rows: list[dict[str, Any]]) -> None:
    row = {**real_rows[0], "solution": [not role for role in real_rows[0]["solution"]]}
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([row]), tmp_path / "wrong.parquet")
    with pytest.raises(DataError, match="row 1: the file's solution"):
        read_prompt_file(tmp_path / "wrong.parquet")


def test_other_parquet_files_are_not_read_as_the_set(tmp_path: Path) -> None:
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([TEXT_ROW]), tmp_path / "prompts.parquet")
    with pytest.raises(DataError, match="columns of the K&K set"):
        read_knights_knaves_set(tmp_path / "prompts.parquet", "compact")


def test_fingerprint_covers_everything_but_metadata() -> None:
    def record(**changes: Any) -> PromptRecord:
        return PromptRecord(**{"id": "a", "prompt": "1+1=", "task": "arithmetic", "answer": "2", **changes})

    records = [record(), record(id="b")]
    fingerprint = dataset_fingerprint(records)
    hashed = b'["a", "1+1=", "arithmetic", "2"]\n["b", "1+1=", "arithmetic", "2"]\n'
    assert (
        fingerprint == hashlib.blake2b(hashed, digest_size=8).hexdigest()
    )  # Pinned: a resumed run finds its groups by this value.
    assert dataset_fingerprint([record(metadata={"level": 3}), record(id="b")]) == fingerprint
    different = [
        [record(id="c"), records[1]],
        [record(prompt="2+0="), records[1]],
        [record(answer="3"), records[1]],
        records[::-1],
        records[:1],
    ]
    assert len({fingerprint, *map(dataset_fingerprint, different)}) == 6
