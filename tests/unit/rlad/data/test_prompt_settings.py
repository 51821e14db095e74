"""Settings of prompt files: messages, suffix, ids, duplicates, invalid rows and metadata."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from rlad.config import PromptFile
from rlad.data.prompt_files import PromptReading, read_prompts
from rlad.data.sources.progress import slow_progress
from rlad.errors import DataError

OWN = {"id": "a", "prompt": "1+1=", "task": "t", "answer": "2"}
QUESTION = {"question": "1+1?", "answer": "2"}
USER = {"role": "user", "content": "1+1?"}


def read(folder: Path, *rows: Any, **settings: Any) -> PromptReading:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return read_prompts(PromptFile(path=str(path), **settings))


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (33, "33"),
        (27.0, "27"),
        (0.5, "0.5"),
        (-3.0, "-3"),
        (True, "True"),
        (["7"], "7"),
        ([[1]], "[[1]]"),
        ([1, 2], "[1, 2]"),
        ({"a": "ü"}, '{"a": "ü"}'),
        ("27.0", "27.0"),
        (" 5 ", " 5 "),
    ],
)
def test_answers_become_text(tmp_path: Path, answer: Any, text: str) -> None:
    assert read(tmp_path, {**OWN, "answer": answer}).records[0].answer == text


@pytest.mark.parametrize(
    ("prompt", "messages"),
    [
        (json.dumps([USER]), (USER,)),
        ([{"from": "human", "value": "1+1?"}], (USER,)),
        ([{**USER, "role": "Human", "name": None, "tool_calls": None}], (USER,)),
        ([{"role": "user", "content": ["1+", {"type": "text", "text": "1?"}]}], (USER,)),
        (USER, (USER,)),
        ("[1, 2] is a list", "[1, 2] is a list"),
        ('[{"a": 1}]', '[{"a": 1}]'),
    ],
)
def test_messages_in_common_notations_become_messages(tmp_path: Path, prompt: Any, messages: Any) -> None:
    assert read(tmp_path, {**OWN, "prompt": prompt}).records[0].prompt == messages


def test_text_becomes_a_user_message_except_in_the_layout_of_rlad_and_after_a_template(tmp_path: Path) -> None:
    templated = "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    assert read(tmp_path, OWN).records[0].prompt == "1+1="
    assert read(tmp_path, QUESTION).records[0].prompt == (USER,)
    assert read(tmp_path, {**QUESTION, "question": templated}).records[0].prompt == templated
    assert read(tmp_path, OWN, chat=True).records[0].prompt == ({"role": "user", "content": "1+1="},)
    assert read(tmp_path, QUESTION, chat=False).records[0].prompt == "1+1?"


def test_system_prompt_and_suffix_are_added_to_every_prompt(tmp_path: Path) -> None:
    system = {"role": "system", "content": "Be brief."}
    expected = (system, {"role": "user", "content": "1+1? Box it."})
    old = {"prompt": [{"role": "system", "content": "old"}, USER], "answer": "2", "task": "t"}
    settings = {"system_prompt": "Be brief.", "prompt_suffix": " Box it."}
    for row in (QUESTION, old):
        assert read(tmp_path, row, **settings).records[0].prompt == expected
    assert read(tmp_path, OWN, prompt_suffix=" ?").records[0].prompt == "1+1= ?"
    assert read(tmp_path, OWN, system_prompt="Be brief.").records[0].prompt == (
        system,
        {"role": "user", "content": "1+1="},
    )
    with pytest.raises(DataError, match="line 1: system_prompt requires messages"):
        read(tmp_path, OWN, system_prompt="Be brief.", chat=False)


def test_made_ids_depend_on_prompt_and_answer_only(tmp_path: Path) -> None:
    one, two, three = read(tmp_path, QUESTION, {**QUESTION, "answer": "3"}, {**QUESTION, "question": "2?"}).records
    assert len({one.id, two.id, three.id}) == 3
    again, other = read(tmp_path, {"question": "0?", "answer": "0"}, {**QUESTION, "level": 3}).records[::-1]
    assert again.id == one.id
    assert other.id != one.id
    assert again.metadata == {"level": 3}


def test_duplicates_are_counted_and_treated_as_set(tmp_path: Path) -> None:
    made = read(tmp_path, QUESTION, QUESTION, {**QUESTION, "answer": "3"}, QUESTION)
    assert (len(made.records), made.duplicates_dropped, made.duplicates_kept, made.other_answers) == (2, 2, 0, 1)
    kept = read(tmp_path, QUESTION, QUESTION, QUESTION, duplicates="keep")
    first, *others = (record.id for record in kept.records)
    assert others == [f"{first}-1", f"{first}-2"]
    assert kept.duplicates_kept == 2
    rows = (OWN, {**OWN, "id": "b"})
    assert [record.id for record in read(tmp_path, *rows).records] == ["a", "b"]
    assert read(tmp_path, *rows).duplicates_kept == 1
    dropped = read(tmp_path, *rows, OWN, duplicates="drop")
    assert ([record.id for record in dropped.records], dropped.duplicates_dropped) == (["a"], 2)
    with pytest.raises(DataError, match=r"line 2: prompt and answer are those of .*line 1; remove one"):
        read(tmp_path, *rows, duplicates="refuse")


def test_equal_ids_of_different_prompts_are_refused_with_both_rows(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"line 2: id 'a' was used before, in .*line 1; .*columns: \{id: null\}"):
        read(tmp_path, OWN, {**OWN, "answer": "3"}, duplicates="drop")
    assert len(read(tmp_path, OWN, {**OWN, "answer": "3"}, columns={"id": None}).records) == 2


def test_invalid_rows_are_dropped_only_if_set(tmp_path: Path) -> None:
    rows = (OWN, {**OWN, "id": "b", "answer": None}, {**OWN, "id": "c", "prompt": " "})
    with pytest.raises(DataError, match="line 2: missing answer"):
        read(tmp_path, *rows)
    reading = read(tmp_path, *rows, invalid_rows="drop")
    assert (len(reading.records), reading.invalid) == (1, 2)
    assert [error.partition(": ")[2][:14] for error in reading.errors] == ["missing answer", "the prompt is "]
    with pytest.raises(DataError, match="holds no prompts.*first invalid row.*line 1: missing answer"):
        read(tmp_path, rows[1], invalid_rows="drop")


def test_other_columns_become_metadata(tmp_path: Path) -> None:
    row = {**OWN, "metadata": {"level": 1}, "level": 2, "source": "mine", "empty": None}
    assert read(tmp_path, row).records[0].metadata == {"level": 1, "source": "mine"}


def test_progress_is_shown_only_on_a_terminal_and_only_when_it_takes_long() -> None:
    now = [0.0]
    for is_terminal, seconds, shown in ((True, 3.0, True), (True, 1.0, False), (False, 3.0, False)):
        now[0] = 0.0
        output = io.StringIO()
        console = Console(file=output, force_terminal=is_terminal)
        with slow_progress("reading rows", console, clock=lambda: now[0]) as advance:
            now[0] = seconds
            for _ in range(512):
                advance()
        assert ("reading rows: 512" in output.getvalue()) is shown
