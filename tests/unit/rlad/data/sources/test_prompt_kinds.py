"""Kinds of files and values that teams bring: read as they mean them, or refused with row and remedy."""

from __future__ import annotations

import decimal
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow
import pyarrow.parquet
import pytest

from rlad.config import PromptFile
from rlad.data.prompt_files import PromptReading, read_prompts
from rlad.errors import DataError

QUESTION = {"question": "1+1?", "answer": "2"}
USER = {"role": "user", "content": "1+1?"}
LINE = json.dumps(QUESTION) + "\n"


def read(path: Path, data: Any, **settings: Any) -> PromptReading:
    if isinstance(data, dict):
        data = [data]
    if isinstance(data, list):
        data = "".join(json.dumps(row) + "\n" for row in data)
    if isinstance(data, pd.DataFrame):
        data.to_parquet(path)
    elif isinstance(data, pyarrow.Table):
        pyarrow.parquet.write_table(data, path)
    else:
        path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return read_prompts(PromptFile(path=str(path), **settings))


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le"])
@pytest.mark.parametrize(
    ("name", "text"), [("r.jsonl", LINE * 2), ("r.json", f"[{LINE}]"), ("r.csv", "question,answer\r\n1+1?,2")]
)
def test_wide_encodings_are_recognised(tmp_path: Path, encoding: str, name: str, text: str) -> None:
    assert read(tmp_path / name, text.encode(encoding)).records[0].answer == "2"


@pytest.mark.parametrize(
    ("name", "text", "questions"),
    [
        ("r.jsonl", '{"question": "a", "answer": "1"},\n{"question": "b", "answer": "2"},\n', ["a", "b"]),
        ("r.jsonl", '[{"question": "a", "answer": "1"}]\n[{"question": "b", "answer": "2"}]\n', ["a", "b"]),
        ("r.csv", "sep=;\r\nquestion;answer\r\na,b;2\r\n", ["a,b"]),
        ("r.csv", " Question , Answer \na,2\n", ["a"]),
        ("r.csv", ",question,answer\n0,a,2\n", ["a"]),
    ],
)
def test_text_files_of_common_tools_are_read(tmp_path: Path, name: str, text: str, questions: list[str]) -> None:
    records = read(tmp_path / name, text).records
    assert [record.prompt[0]["content"] for record in records if isinstance(record.prompt, tuple)] == questions
    assert all(record.metadata == {} for record in records)


@pytest.mark.parametrize(
    ("prompt", "messages"),
    [
        ({"messages": [USER]}, [USER]),
        ([[USER]], [USER]),
        ([["user", "1+1?"]], [USER]),
        ([["System", "s"], ["human", "1+1?"]], [{"role": "system", "content": "s"}, USER]),
        ([{"role": "developer", "content": "s"}, USER], [{"role": "system", "content": "s"}, USER]),
        (json.dumps({"messages": [USER]}), [USER]),
        (str([USER]), [USER]),
        (str(np.array([USER], dtype=object)), [USER]),
        (f"array([{USER}], dtype=object)", [USER]),
        (
            "[{'role': 'user', 'content': 'a'}\n {'role': 'user', 'content': 'b'}]",
            [{**USER, "content": c} for c in "ab"],
        ),
    ],
)
def test_messages_in_every_notation_become_messages(tmp_path: Path, prompt: Any, messages: Any) -> None:
    assert read(tmp_path / "r.jsonl", {"prompt": prompt, "answer": "2"}).records[0].prompt == tuple(messages)


@pytest.mark.parametrize(
    ("table", "answers"),
    [
        (pyarrow.table({"question": [b"1+1?"], "answer": [b"2"], "id": [b"x"]}), ["2"]),
        (pyarrow.table({"question": ["1+1?"], "answer": [decimal.Decimal("3.50")]}), ["3.50"]),
        (pd.DataFrame({"question": ["1+1?"], "answer": np.array([0.1], dtype=np.float32)}), ["0.1"]),
        (pd.DataFrame({"question": ["1+1?"], "answer": [np.array([1, 2])]}), ["[1, 2]"]),
        (pd.DataFrame({"prompt": [np.array([USER])], "answer": [np.array(["2"])]}), ["2"]),
        (pd.DataFrame({"question": pd.Categorical(["1+1?"]), "answer": pd.Categorical(["2"])}), ["2"]),
    ],
)
def test_columns_of_numpy_and_arrow_are_read(tmp_path: Path, table: Any, answers: list[str]) -> None:
    records = read(tmp_path / "r.parquet", table).records
    assert [record.answer for record in records] == answers
    assert records[0].prompt == (USER,)


@pytest.mark.parametrize(
    ("line", "answer"),
    [
        ('{"question": "a", "answer": ' + "9" * 5000 + "}", "9" * 5000),
        ('{"question": "a", "answer": 1e22}', "1" + "0" * 22),
        ('{"question": "a", "answer": -0.0}', "0"),
        ('{"question": "a", "answer": "2", "seed": ' + "9" * 5000 + "}", "2"),
    ],
)
def test_huge_numbers_are_kept(tmp_path: Path, line: str, answer: str) -> None:
    assert read(tmp_path / "r.jsonl", line).records[0].answer == answer
    assert read(tmp_path / "r.json", f"[{line}]").records[0].answer == answer


def test_metadata_of_any_value_can_be_stored(tmp_path: Path) -> None:
    line = '{"question": "a", "answer": "1", "m": "\\ud800", "\\udc00": 1, "x": NaN, "y": Infinity, "z": {"w": [NaN]}}'
    reading = read(tmp_path / "r.jsonl", line)
    assert reading.records[0].metadata == {"m": "?", "?": 1, "y": "inf", "z": {"w": [None]}}
    json.dumps([reading.records[0].metadata, reading.files[0].columns], ensure_ascii=False, allow_nan=False).encode()


def test_layout_is_recognised_by_the_first_complete_row(tmp_path: Path) -> None:
    rows = [{"question": "a"}, {"question": "b", "answer": None}, {"question": "c", "answer": "so\n#### 3"}]
    with pytest.raises(DataError, match="line 1: missing answer"):
        read(tmp_path / "r.jsonl", rows)
    reading = read(tmp_path / "r.jsonl", rows, invalid_rows="drop")
    assert (reading.files[0].layout, reading.records[0].answer, reading.invalid) == ("GSM8K", "3", 2)
    assert reading.files[0].rows == 3
    assert reading.errors[0].startswith(f"{tmp_path / 'r.jsonl'}, line 1: missing answer")


def test_shards_with_different_columns_are_read_each_in_its_layout(tmp_path: Path) -> None:
    folder = tmp_path / "shards"
    folder.mkdir()
    (folder / "a.jsonl").write_text(LINE)
    (folder / "b.csv").write_text("problem,solution,level\np,so \\boxed{3},1\n")
    pyarrow.parquet.write_table(pyarrow.table({"prompt": [[USER]], "solution": ["4"]}), folder / "c.parquet")
    reading = read_prompts(PromptFile(path=str(folder)))
    assert [(file.layout, file.rows) for file in reading.files] == [
        ("question and answer", 1),
        ("MATH", 1),
        ("TRL", 1),
    ]
    assert [record.answer for record in reading.records] == ["2", "3", "4"]


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        ({**QUESTION, "images": [{"bytes": "x"}]}, r"has an image, a video or sound \(column 'images'\).*text-only"),
        ({**QUESTION, "Image": "a.png"}, "column 'Image'"),
        ({**QUESTION, "video": "v.mp4"}, "column 'video'"),
        ({**QUESTION, "audio": {"array": [0.1]}}, "column 'audio'"),
        ({**QUESTION, "question": "<image>\nWhat?"}, r"a placeholder in '<image>\\nWhat\?'"),
        ({"prompt": [{**USER, "content": "What?\n<image>"}], "answer": "2"}, "a placeholder in"),
        ({"prompt": [{**USER, "content": [{"type": "image"}]}], "answer": "2"}, "a part of type 'image'"),
        ({"prompt": [USER, {"role": "tool", "content": "3"}], "answer": "2"}, "role 'tool', which is not supported"),
        ({"prompt": [{**USER, "content": " "}], "answer": "2"}, "the prompt is empty"),
        ({"prompt": [{"role": "system", "content": "s"}], "answer": "2"}, "the prompt is empty"),
        ({"prompt": '[{"role": "user", "content": "1', "answer": "2"}, "looks like messages and cannot be parsed"),
        ({"prompt": 5, "answer": "2"}, "prompt must be text or a list of messages, got 5"),
        ({**QUESTION, "answer": " \n"}, "missing answer"),
        ({**QUESTION, "answer": [1, float("nan")]}, "the answer holds a number that is not finite"),
        ({**QUESTION, "answer": ["\ud800", "x"]}, "lone surrogate"),
        ({"id": 1, "context": "c", "question": "q", "answers": []}, "columns: {prompt: question, answer: answers}"),
        ({"a": "short", "b": "a longer text", "results": 3}, "columns: {prompt: b, answer: results}"),
    ],
)
def test_row_that_cannot_be_used_is_refused(tmp_path: Path, row: Any, complaint: str) -> None:
    with pytest.raises(DataError, match=complaint) as refusal:
        read(tmp_path / "r.jsonl", row)
    assert str(refusal.value).startswith(f"{tmp_path / 'r.jsonl'}, line 1: ")


def test_columns_named_like_media_without_any_are_metadata(tmp_path: Path) -> None:
    rows = [{**QUESTION, "image": None}, {"question": "SVG <image> element?", "answer": "2", "images": []}]
    assert len(read(tmp_path / "r.jsonl", rows).records) == 2


@pytest.mark.parametrize(
    ("name", "data", "complaint"),
    [
        ("r.jsonl", b"\r\nversion https://git-lfs.github.com/spec/v1\r\n", " is a Git LFS pointer"),
        ("r.csv", b"\xef\xbb\xbfversion https://git-lfs.github.com/spec/v1\n", " is a Git LFS pointer"),
        ("r.parquet", b"# xet version 0\nfilesize = 3\n", " is a Xet pointer"),
        ("r.jsonl", b'<?xml version="1.0"?><Error/>', " is XML, such as the error message of a server"),
        ("r.csv", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", " is a zip archive or spreadsheet"),
        ("r.json", b'[{"question": "a", "answer": "1"},]', ", line 1: not valid JSON: .*remove the comma"),
        ("r.jsonl", b'// c\n{"question": "a", "answer": "1"}', ", line 1: not valid JSON: .*JSON has no comments"),
        ("r.jsonl", b'{"question": "a", "m": ' + b"[" * 4000 + b"]" * 4000 + b"}", ", line 1: .*nested too deeply"),
        ("r.csv", b"question,answer\na,NaN\n", ", row 1: missing answer"),
        ("r.csv", b"question,answer\n", " holds no prompts"),
        ("r.json", b"null", ", line 1: expected an object"),
    ],
)
def test_file_that_cannot_be_used_is_refused(tmp_path: Path, name: str, data: bytes, complaint: str) -> None:
    with pytest.raises(DataError, match=complaint) as refusal:
        read(tmp_path / name, data)
    assert str(refusal.value).startswith(str(tmp_path / name))


def test_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    table = pyarrow.table({"question": [b"\xff\xfe\x00"], "answer": [b"2"]})
    with pytest.raises(DataError, match="row 1: expected text, got 3 bytes that are not UTF-8"):
        read(tmp_path / "r.parquet", table)
