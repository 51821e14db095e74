"""Formats of prompt files: endings, compression, encodings, folders and globs give the same records."""

from __future__ import annotations

import bz2
import datetime
import gzip
import json
import lzma
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.feather
import pyarrow.ipc
import pyarrow.parquet
import pytest

from rlad.config import PromptFile
from rlad.data.prompt_files import read_prompt_file, read_prompts
from rlad.data.records import PromptRecord
from rlad.errors import DataError

ROWS = [
    {"id": f"p{n}", "prompt": f"{n} + 1 = 多少?", "task": "sums", "answer": str(n + 1), "metadata": {"level": n}}
    for n in (1, 2, 3)
]
RECORDS = [PromptRecord(**row) for row in ROWS]  # type: ignore[arg-type]
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)
ARRAY = json.dumps(ROWS, ensure_ascii=False, indent=1)
TABLE = pyarrow.Table.from_pylist(ROWS)
CSV = "id,prompt,task,answer,metadata\n" + "".join(
    f'{row["id"]},"{row["prompt"]}",sums,{row["answer"]},"{{""level"": {n}}}"\n' for n, row in enumerate(ROWS, start=1)
)
COLUMNS = {name: [row[name] for row in ROWS] for name in ROWS[0]}


def write_arrow(path: Path, kind: Callable[..., Any]) -> None:
    with pyarrow.OSFile(str(path), "wb") as file, kind(file, TABLE.schema) as writer:
        writer.write_table(TABLE, max_chunksize=2)


TEXTS: list[tuple[str, str]] = [
    ("rows.jsonl", LINES),
    ("ROWS.JSONL", LINES),
    ("rows.ndjson", LINES),
    ("rows.json", LINES),
    ("rows.txt", LINES),
    ("rows", ARRAY),
    ("rows.jsonl", LINES.rstrip("\n")),
    ("rows.jsonl", LINES.replace("\n", "\r\n")),
    ("rows.jsonl", LINES.replace("\n", "\r")),
    ("rows.jsonl", LINES.replace("\n", "\n \n\n")),
    ("rows.jsonl", "\ufeff" + LINES),
    ("rows.json", ARRAY),
    ("rows.json", "\ufeff" + ARRAY),
    ("rows.jsonl", ARRAY),
    ("rows.jsonl", json.dumps(ROWS)),
    ("rows.jsonl", "\n".join(json.dumps(row, indent=2) for row in ROWS)),
    ("rows.json", json.dumps({"version": "1", "data": ROWS})),
    ("rows.json", json.dumps({"version": "1", "data": ROWS}, indent=2)),
    ("rows.json", json.dumps({"rows": [{"row_idx": n, "row": row} for n, row in enumerate(ROWS)]})),
    ("rows.json", json.dumps({row["id"]: {key: row[key] for key in row if key != "id"} for row in ROWS})),
    ("rows.json", json.dumps({name: dict(enumerate(cells)) for name, cells in COLUMNS.items()})),
    ("rows.json", json.dumps(COLUMNS)),
    (
        "rows.json",
        json.dumps({"columns": list(ROWS[0]), "data": [list(row.values()) for row in ROWS], "index": [0, 1]}),
    ),
    ("rows.jsonl", "\ufeff" + LINES.replace("\n", "\n\ufeff", 1)),
    ("rows.csv", CSV),
    ("rows.CSV", "\ufeff" + CSV.replace("\n", "\r\n")),
    ("rows.tsv", CSV.replace(",", "\t").replace('""level""\t', '""level"",')),
    ("rows.csv", CSV.replace(",", ";")),
]


@pytest.mark.parametrize(("name", "text"), TEXTS, ids=[f"{n}-{name}" for n, (name, _) in enumerate(TEXTS)])
def test_text_formats_give_the_same_records(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_bytes(text.encode())
    assert read_prompt_file(tmp_path / name) == RECORDS


@pytest.mark.parametrize(
    ("ending", "compress"),
    [
        (".gz", gzip.compress),
        (".bz2", bz2.compress),
        (".xz", lzma.compress),
        (".zst", lambda data: pyarrow.compress(data, "zstd", asbytes=True)),
        (".ZST", lambda data: pyarrow.compress(data, "zstd", asbytes=True)),
        ("", gzip.compress),
        (".gz", lambda data: data),
    ],
)
@pytest.mark.parametrize(("name", "text"), [("rows.jsonl", LINES), ("rows.json", ARRAY), ("rows.csv", CSV)])
def test_compressed_files_are_known_by_content(
    tmp_path: Path, name: str, text: str, ending: str, compress: Callable[[bytes], bytes]
) -> None:
    path = tmp_path / f"{name}{ending}"
    path.write_bytes(compress(text.encode()))
    assert read_prompt_file(path) == RECORDS


def test_binary_formats_give_the_same_records(tmp_path: Path) -> None:
    pyarrow.parquet.write_table(TABLE, tmp_path / "a.parquet", row_group_size=2)
    pyarrow.parquet.write_table(TABLE, tmp_path / "b.unknown")
    write_arrow(tmp_path / "c.arrow", pyarrow.ipc.new_stream)
    write_arrow(tmp_path / "d.arrow", pyarrow.ipc.new_file)
    pyarrow.feather.write_feather(TABLE, tmp_path / "e.feather")
    (tmp_path / "f.parquet.gz").write_bytes(gzip.compress((tmp_path / "a.parquet").read_bytes()))
    (tmp_path / "g.arrow.gz").write_bytes(gzip.compress((tmp_path / "c.arrow").read_bytes()))
    for path in sorted(tmp_path.iterdir()):
        assert read_prompt_file(path) == RECORDS, path


def test_values_that_json_cannot_hold_become_text_in_the_metadata(tmp_path: Path) -> None:
    when = datetime.datetime(2025, 1, 2, 3, 4)
    row = {**ROWS[0], "metadata": {"when": when, "image": b"abc"}, "score": float("nan"), "__index_level_0__": 4}
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([row]), tmp_path / "rows.parquet")
    [record] = read_prompt_file(tmp_path / "rows.parquet")
    assert record.metadata == {"when": "2025-01-02T03:04:00", "image": "<3 bytes>"}


def test_maps_and_lists_by_key_are_messages(tmp_path: Path) -> None:
    message = pyarrow.map_(pyarrow.string(), pyarrow.string())
    schema = pyarrow.schema([("prompt", pyarrow.list_(message)), ("answer", pyarrow.int64())])
    row = {"prompt": [[("role", "user"), ("content", "1+1?")]], "answer": 2}
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([row], schema=schema), tmp_path / "maps.parquet")
    by_key = {"conversations": {"from": ["human", "gpt"], "value": ["1+1?", "2"]}}
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([by_key]), tmp_path / "lists.parquet")
    (tmp_path / "pandas.csv").write_text("prompt,answer\n\"[{'role': 'user', 'content': '1+1?'}]\",2\n")
    for name in ("maps.parquet", "lists.parquet", "pandas.csv"):
        [record] = read_prompt_file(tmp_path / name)
        assert (record.prompt, record.answer) == (({"role": "user", "content": "1+1?"},), "2")


def test_other_encodings_are_refused_until_they_are_named(tmp_path: Path) -> None:
    for name, text in [("rows.jsonl", LINES), ("rows.json", ARRAY), ("rows.csv", CSV)]:
        path = tmp_path / name
        path.write_bytes(text.encode("gb18030"))
        with pytest.raises(DataError, match=r"set `encoding`.*gb18030") as refusal:
            read_prompt_file(path)
        assert str(path) in str(refusal.value)
        assert read_prompts(PromptFile(path=str(path), encoding="gb18030")).records == RECORDS
    (tmp_path / "wide.jsonl").write_bytes(LINES.encode("utf-16"))
    assert read_prompt_file(tmp_path / "wide.jsonl") == RECORDS


def test_folders_and_globs_are_read_in_the_order_of_names(tmp_path: Path) -> None:
    shards = tmp_path / "shards"
    (shards / "deep").mkdir(parents=True)
    for number, name in enumerate(("part-0.jsonl", "part-1.json", "deep/part-2.jsonl")):
        (shards / name).write_text(json.dumps(ROWS[number]))
    for name in ("README.md", ".hidden.jsonl", "dataset_info.json", "_SUCCESS"):
        (shards / name).write_text("{}")
    assert [record.id for record in read_prompt_file(shards)] == ["p3", "p1", "p2"]
    assert [record.id for record in read_prompt_file(shards / "part-*")] == ["p1", "p2"]
    assert [record.id for record in read_prompt_file(shards / "**" / "*.json*", limit=2)] == ["p3", "p1"]
    reading = read_prompts(PromptFile(path=str(shards)))
    assert [(Path(file.path).name, file.rows) for file in reading.files] == [
        ("part-2.jsonl", 1),
        ("part-0.jsonl", 1),
        ("part-1.json", 1),
    ]
    with pytest.raises(DataError, match="no prompt file matches"):
        read_prompt_file(shards / "*.parquet")


def test_folder_of_several_splits_or_without_data_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no prompt file in folder"):
        read_prompt_file(tmp_path)
    for split in ("train", "test"):
        (tmp_path / f"{split}-00000-of-00001.jsonl").write_text(LINES)
    with pytest.raises(DataError, match=r"several splits \(test, train\); choose one with a glob"):
        read_prompt_file(tmp_path)
    assert read_prompt_file(tmp_path / "train*") == RECORDS


@pytest.mark.parametrize(
    ("name", "data", "complaint"),
    [
        ("rows.jsonl", b"", "holds no prompts: the file is empty"),
        ("rows.parquet", b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer.*git lfs pull"),
        ("rows.jsonl", b"/annex/objects/SHA256E-s1", "git-annex pointer"),
        ("rows.jsonl", b"<!DOCTYPE html><html>", "web page"),
        ("rows.csv", b"PK\x03\x04abc", "zip archive"),
        ("rows.tar.gz", gzip.compress(b"x", mtime=0), "tar archive"),
        (
            "rows.jsonl.gz",
            gzip.compress(LINES.encode(), mtime=0)[:-12],
            "not a readable gzip file.*fetch or write it again",
        ),
        ("rows.jsonl.zst", b"\x28\xb5\x2f\xfd", "not a readable zstd file"),
        ("rows.arrow", b"ARROW1\x00\x00abc", "not a readable Arrow file"),
        ("rows.jsonl", b"{'id': 1}\n", "line 1: not valid JSON.*Python's notation"),
        ("rows.json", ARRAY.encode()[:-20], r"line \d+: not valid JSON.*cut off"),
        ("rows.jsonl", LINES.encode()[:-9], "line 3: not valid JSON.*cut off"),
        ("rows.json", json.dumps({"train": ROWS, "data": ROWS}).encode(), r"several lists of rows \(data, train\)"),
        ("rows.csv", b"prompt,answer\na,b,c\n", "row 1: expected 2 cells as in the header, got 3"),
        ("rows.csv", b"prompt,prompt\na,b\n", "two columns have the same name"),
        ("rows.csv", b'prompt,answer\n"a,b\n', "not valid CSV"),
        ("rows.csv", b"prompt,answer\n", "holds no prompts"),
        ("rows.pkl", b"\x80\x04", r"must be \.jsonl or \.parquet"),
    ],
)
def test_files_that_are_not_data_are_refused_with_a_remedy(
    tmp_path: Path, name: str, data: bytes, complaint: str
) -> None:
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(DataError, match=complaint) as refusal:
        read_prompt_file(path)
    assert str(path) in str(refusal.value)
