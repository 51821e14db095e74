"""Files that teams brought: each that holds usable data loads, each broken one names file, row and remedy."""

from __future__ import annotations

from pathlib import Path

import pytest

from rlad.config import PromptFile
from rlad.data.prompt_files import read_prompts
from rlad.errors import DataError

LOADED = {
    # file: layout, prompts, task, answer of the first prompt
    "OWN.JSONL": ("rlad", 6, "math", "5"),
    "aime_int.jsonl": ("rlad", 3, "math", "7"),
    "alpaca.jsonl": ("alpaca", 1, "default", "2"),
    "answer_int.parquet": ("rlad", 6, "math", "5"),
    "answer_mixed.jsonl": ("rlad", 2, "math", "1"),
    "answer_object.jsonl": ("rlad", 1, "countdown", '{"numbers": [3, 4, 6], "target": 42}'),
    "array_in.jsonl": ("rlad", 6, "math", "5"),
    "blank_lines.jsonl": ("rlad", 6, "math", "5"),
    "bom.jsonl": ("rlad", 6, "math", "5"),
    "cr_only.jsonl": ("rlad", 6, "math", "5"),
    "crlf.jsonl": ("rlad", 6, "math", "5"),
    "deepscaler.json": ("DeepScaleR", 4, "math", "8"),
    "eurus_code.parquet": ("Eurus", 1, "code", '[{"input": "1 2\\n", "output": "3\\n"}]'),
    "extra_column.jsonl": ("rlad", 6, "math", "5"),
    "few_shot.jsonl": ("rlad", 1, "math", "5"),
    "gsm8k.jsonl": ("GSM8K", 4, "math", "3"),
    "long_prompt.jsonl": ("rlad", 2, "math", "5"),
    "mbpp.jsonl": ("MBPP", 1, "code", '{"asserts": "assert add(1,2)==3"}'),
    "message_name.jsonl": ("rlad", 1, "math", "5"),
    "messages_sft.jsonl": ("messages", 1, "default", "a"),
    "metadata_bytes.parquet": ("rlad", 1, "math", "5"),
    "metadata_time.parquet": ("rlad", 1, "math", "5"),
    "nested_lists.parquet": ("rlad", 6, "math", "5"),
    "no_id.jsonl": ("rlad", 6, "math", "5"),
    "no_task.jsonl": ("rlad", 6, "default", "5"),
    "nul.jsonl": ("rlad", 1, "math", "5"),
    "numina_cot.parquet": ("NuminaMath", 3, "math", "2"),
    "openrlhf.jsonl": ("OpenRLHF", 3, "default", "2"),
    "own.csv": ("rlad", 6, "math", "5"),
    "own.json": ("rlad", 6, "math", "5"),
    "own.json.txt": ("rlad", 6, "math", "5"),
    "own.jsonl": ("rlad", 6, "math", "5"),
    "own.ndjson": ("rlad", 6, "math", "5"),
    "own.parquet": ("rlad", 6, "math", "5"),
    "own_dict_task.parquet": ("rlad", 6, "math", "5"),
    "own_large_string.parquet": ("rlad", 6, "math", "5"),
    "own_pandas.parquet": ("rlad", 6, "math", "5"),
    "own_text.jsonl": ("rlad", 6, "math", "5"),
    "parts_content.jsonl": ("rlad", 1, "math", "5"),
    "prompt_json_text.jsonl": ("rlad", 1, "math", "5"),
    "sharegpt.jsonl": ("ShareGPT", 1, "default", "1"),
    # Read, then refused with their row when the chat template is applied (tests/unit/pipelines/resolution).
    "template_baked.jsonl": ("rlad", 1, "math", "5"),
    "template_other.jsonl": ("rlad", 1, "math", "5"),
    "trl_prompt_text.jsonl": ("TRL", 3, "default", "$1$"),
    "verifiers_env.jsonl": ("verifiers", 3, "math", "1"),
    "verl_gsm8k.parquet": ("verl", 6, "math", "2"),
}
REFUSED = {
    "answer_empty.jsonl": ", line 1: missing answer",
    "answer_nan.jsonl": ", line 1: missing answer",
    "answer_null.jsonl": ", line 2: missing answer",
    "dup_id.jsonl": ", line 2: id 'p1' was used before",
    "empty.jsonl": " holds no prompts: the file is empty",
    "empty.parquet": " holds no prompts: the file is empty",
    "empty_list.jsonl": ", line 1: prompt must be text or a list of messages",
    "empty_prompt.jsonl": ", line 1: the prompt is empty",
    "ends_with_assistant.jsonl": ", line 1: the last message has role `assistant`",
    "gb18030.jsonl": ", line 1: not valid JSON: the bytes are not utf-8",
    "id_bool.jsonl": ", line 1: id must be text",
    "latin1.jsonl": ", line 1: not valid JSON: the bytes are not utf-8",
    "lfs.parquet": " is a Git LFS pointer",
    "no_rows.parquet": " holds no prompts",
    "own.jsonl.zst": " is not a readable zstd file",
    "truncated_last.jsonl": ", line 2: not valid JSON",
}


@pytest.fixture(scope="module")
def folder(shared_data: Path) -> Path:
    folder = shared_data / "field" / "layouts"
    if not folder.is_dir():
        pytest.skip(f"no layouts of the field at {folder}")
    return folder


def test_every_file_has_an_expected_outcome(folder: Path) -> None:
    assert {path.name for path in folder.iterdir()} <= LOADED.keys() | REFUSED.keys()


@pytest.mark.parametrize("name", LOADED)
def test_usable_file_loads(folder: Path, name: str) -> None:
    reading = read_prompts(PromptFile(path=str(folder / name)))
    first = reading.records[0]
    assert (reading.files[0].layout, len(reading.records), first.task, first.answer) == LOADED[name]
    assert all(record.prompt and isinstance(record.prompt, str | tuple) for record in reading.records)


@pytest.mark.parametrize("name", REFUSED)
def test_broken_file_is_refused_with_its_row(folder: Path, name: str) -> None:
    with pytest.raises(DataError) as refusal:
        read_prompts(PromptFile(path=str(folder / name)))
    assert str(refusal.value).startswith(f"{folder / name}{REFUSED[name]}")


@pytest.mark.parametrize(
    ("name", "settings", "count"),
    [
        ("gb18030.jsonl", {"encoding": "gb18030"}, 1),
        ("latin1.jsonl", {"encoding": "latin-1"}, 1),
        ("dup_id.jsonl", {"duplicates": "drop"}, 1),
        ("answer_null.jsonl", {"invalid_rows": "drop"}, 1),
        ("id_bool.jsonl", {"columns": {"id": None}}, 1),
    ],
)
def test_remedy_of_an_error_message_works(folder: Path, name: str, settings: dict[str, object], count: int) -> None:
    source = PromptFile.model_validate({"path": str(folder / name), **settings})
    assert len(read_prompts(source).records) == count
