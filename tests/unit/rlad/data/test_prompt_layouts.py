"""Layouts of other projects: each is recognised by name, and gives the expected prompt, answer and task."""

from __future__ import annotations

import base64
import json
import pickle
import zlib
from pathlib import Path
from typing import Any

import pytest

from rlad.config import PromptFile
from rlad.data.prompt_files import PromptReading, read_prompts
from rlad.errors import DataError

CHAT = [{"role": "user", "content": "1+1?"}]
VERL = {"data_source": "openai/gsm8k", "prompt": CHAT, "ability": "math", "reward_model": {"ground_truth": "2"}}
STDIN = {"inputs": ["1 2\n", ["3", "4"]], "outputs": ["3\n", ["7"]]}
STDIN_ANSWER = [{"input": "1 2\n", "output": "3\n"}, {"input": "3\n4", "output": "7"}]
CALL = {"fn_name": "add", "inputs": [[1, 2]], "outputs": [3]}
CASE = {"input": "1 2\n", "output": "3\n", "testtype": "stdin"}
PRIVATE = base64.b64encode(zlib.compress(pickle.dumps(json.dumps([CASE])))).decode()


def read(folder: Path, *rows: Any, **settings: Any) -> PromptReading:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return read_prompts(PromptFile(path=str(path), **settings))


ROWS: list[tuple[str, dict[str, Any], str, str]] = [
    ("verl", VERL, "math", "2"),
    ("verl", {**VERL, "reward_model": json.dumps({"ground_truth": 2.0})}, "math", "2"),
    (
        "verl",
        {**VERL, "ability": None, "reward_model": {"ground_truth": {"target": 7, "numbers": [3, 4]}}},
        "default",
        '{"target": 7, "numbers": [3, 4]}',
    ),
    ("DAPO", {**VERL, "data_source": "math_dapo", "ability": "MATH"}, "math", "2"),
    (
        "Skywork-OR1",
        {**VERL, "reward_model": {"ground_truth": '["2"]'}, "extra_info": {"model_difficulty": {"x": 1}}},
        "math",
        "2",
    ),
    (
        "Eurus",
        {**VERL, "data_source": "taco", "ability": "code", "reward_model": {"ground_truth": json.dumps(STDIN)}},
        "code",
        json.dumps(STDIN_ANSWER),
    ),
    ("OpenRLHF", {"input": "1+1?", "label": "2"}, "default", "2"),
    ("OpenRLHF", {"context_messages": CHAT, "label": 2}, "default", "2"),
    ("TRL", {"prompt": CHAT, "solution": "$2$"}, "default", "$2$"),
    ("TRL", {"prompt": "1+1?", "ground_truth": "2"}, "default", "2"),
    ("verifiers", {"example_id": 0, "prompt": CHAT, "answer": "2", "task": "sums", "info": "{}"}, "sums", "2"),
    ("verifiers", {"question": "1+1?", "answer": "", "info": {"a": [1]}}, "default", '{"a": [1]}'),
    (
        "verifiers",
        {"problem_id": "s1", "task_type": "math", "prompt": "1+1?", "verification_info": '{"ground_truth": "2"}'},
        "math",
        "2",
    ),
    (
        "ShareGPT",
        {"conversations": [{"from": "human", "value": "1+1?"}, {"from": "gpt", "value": "2"}]},
        "default",
        "2",
    ),
    ("messages", {"messages": [*CHAT, {"role": "assistant", "content": "2"}]}, "default", "2"),
    ("messages", {"messages": json.dumps(CHAT), "ground_truth": "2"}, "default", "2"),
    ("alpaca", {"instruction": "1+1?", "input": "", "output": "2"}, "default", "2"),
    ("GSM8K", {"question": "1+1?", "answer": "1+1=<<1+1=2>>2\n#### 1,002"}, "math", "1002"),
    (
        "MATH",
        {"problem": "1+1?", "level": "Level 1", "type": "Algebra", "solution": r"\boxed{1}, so \boxed{\frac{4}{2}}."},
        "math",
        r"\frac{4}{2}",
    ),
    ("MATH", {"problem": "1+1?", "solution": r"\boxed{2}", "answer": "2", "subject": "x", "level": 1}, "math", "2"),
    (
        "OpenR1",
        {"problem": "1+1?", "solution": "s", "answer": "2", "source": "a", "uuid": "u", "generations": ["long"]},
        "math",
        "2",
    ),
    ("Big-Math", {"problem": "1+1?", "answer": "2", "source": "a", "llama8b_solve_rate": 0.5}, "math", "2"),
    (
        "NuminaMath",
        {"source": "a", "problem": "1+1?", "solution": r"\boxed{2}", "messages": CHAT, "answer": None},
        "math",
        "2",
    ),
    ("DeepScaleR", {"problem": "1+1?", "answer": "2", "solution": "s"}, "math", "2"),
    ("problem and answer", {"problem": "1+1?", "answer": 2, "difficulty": 1}, "math", "2"),
    ("APPS", {"question": "1+1?", "input_output": json.dumps(STDIN), "url": "u"}, "code", json.dumps(STDIN_ANSWER)),
    ("APPS", {"question": "1+1?", "input_output": json.dumps(CALL)}, "code", json.dumps(CALL)),
    (
        "TACO",
        {"question": "1+1?", "input_output": json.dumps(STDIN), "raw_tags": "[]"},
        "code",
        json.dumps(STDIN_ANSWER),
    ),
    (
        "LiveCodeBench",
        {
            "question_id": "q",
            "question_content": "1+1?",
            "public_test_cases": json.dumps([CASE]),
            "private_test_cases": PRIVATE,
            "metadata": "{}",
        },
        "code",
        json.dumps([STDIN_ANSWER[0]] * 2),
    ),
    (
        "LiveCodeBench",
        {
            "question_content": "1+1?",
            "public_test_cases": json.dumps([{"input": "[1]\n2", "output": "3", "testtype": "functional"}]),
            "metadata": json.dumps({"func_name": "add"}),
        },
        "code",
        json.dumps({"fn_name": "add", "inputs": [[[1], 2]], "outputs": [3]}),
    ),
    ("Countdown", {"nums": [3, 4], "target": 7}, "countdown", '{"numbers": [3, 4], "target": 7}'),
    ("multiple choice", {"question": "1+1?", "choices": ["1", "2"], "answer": 1}, "multiple_choice", "B"),
    (
        "multiple choice",
        {"question": "1+1?", "choices": {"text": ["1", "2"], "label": ["A", "B"]}, "answerKey": "B"},
        "multiple_choice",
        "B",
    ),
    (
        "multiple choice",
        {"question": "1+1?", "options": {"A": "one", "B": "two"}, "answer": "two"},
        "multiple_choice",
        "B",
    ),
    (
        "multiple choice",
        {"question": "1+1?", "options": ["A)1", "B) 2"], "rationale": "r", "correct": "B"},
        "multiple_choice",
        "B",
    ),
    (
        "multiple choice",
        {"question_stem": "1+1?", "choices": {"text": ["1", "2"], "label": ["A", "B"]}, "answerKey": "B"},
        "multiple_choice",
        "B",
    ),
    (
        "problem and tests",
        {"problem": "1+1?", "solutions": ["x"], "tests": json.dumps([{"input": "1", "output": "2"}])},
        "code",
        '[{"input": "1", "output": "2"}]',
    ),
    (
        "problem and tests",
        {"id": "1", "question": "1+1?", "test_cases": ["assert f(1) == 2", "assert f(2) == 3"]},
        "code",
        json.dumps({"asserts": "assert f(1) == 2\nassert f(2) == 3"}),
    ),
    ("question and answer", {"Body": "1+1?", "Question": "How much?", "Answer": "2.0"}, "default", "2.0"),
    ("question and answer", {"ID": "x", "Question": "1+1?", "Answer": 2, "Year": 2024}, "default", "2"),
    ("question and answer", {"query": "1+1?", "expected_answer": "2"}, "default", "2"),
]


@pytest.mark.parametrize(("layout", "row", "task", "answer"), ROWS, ids=[f"{row[0]}-{n}" for n, row in enumerate(ROWS)])
def test_layout_is_recognised_and_read(
    tmp_path: Path, layout: str, row: dict[str, Any], task: str, answer: str
) -> None:
    reading = read(tmp_path, row)
    assert reading.files[0].layout == layout
    [record] = reading.records
    assert (record.task, record.answer) == (task, answer)
    assert isinstance(record.prompt, tuple)
    text = record.prompt[-1]["content"]
    assert record.prompt[-1]["role"] == "user"
    assert "numbers 3, 4 " in text if layout == "Countdown" else text.startswith("1+1?")


def test_programs_show_their_starter_code_and_assertions(tmp_path: Path) -> None:
    tests = {"question": "Add.", "test_cases": ["assert f(1) == 2", "assert f(2) == 3"]}
    [record] = read(tmp_path, tests).records
    assert record.prompt[0]["content"] == (  # type: ignore[index]
        "Add.\nYour code should pass tests such as:\n```python\nassert f(1) == 2\n```"
    )
    functional = {"problem": "Add.", "tests": [{"input": "1", "output": "2", "testtype": "functional"}]}
    with pytest.raises(DataError, match="the tests call a function whose name the row does not hold"):
        read(tmp_path, functional)
    mbpp = {"task_id": 1, "text": "Add.", "code": "", "test_list": ["assert f(1) == 2"], "test_setup_code": "import re"}
    [record] = read(tmp_path, mbpp).records
    assert record.prompt[0]["content"] == (  # type: ignore[index]
        "Add.\nYour code should pass these tests:\n```python\nassert f(1) == 2\n```"
    )
    assert record.answer == '{"asserts": "import re\\nassert f(1) == 2"}'
    human = {"task_id": "H/0", "prompt": "def f(x):\n", "test": "def check(f):\n    assert f(1)", "entry_point": "f"}
    [record] = read(tmp_path, human).records
    assert record.id == "H/0"
    assert "def f(x):" in record.prompt[0]["content"]  # type: ignore[index]
    assert json.loads(record.answer)["asserts"].endswith("check(f)")
    [record] = read(
        tmp_path, {"question": "Add.", "starter_code": "def g():", "input_output": json.dumps(CALL)}
    ).records
    assert "```python\ndef g():\n```" in record.prompt[0]["content"]  # type: ignore[index]


@pytest.mark.parametrize(
    ("rows", "complaint"),
    [
        ([VERL, {**VERL, "reward_model": None}], "line 2: reward_model must be a mapping"),
        ([VERL, {**VERL, "reward_model": {"ground_truth": None}}], "line 2: missing answer"),
        ([{"question": "q", "answer": "#### 2"}, {"question": "q", "answer": "2"}], "line 2: missing answer"),
        ([{"problem": "p", "source": "s", "solution": "no box", "answer": "proof"}], "line 1: missing answer"),
        ([{"question": "q", "input_output": ""}], "line 1: missing tests"),
        ([{"question": "q", "input_output": '{"inputs": ["1"], "outputs": []}'}], "line 1: missing tests"),
        ([{"nums": [], "target": 3}], "line 1: expected a list of numbers"),
        ([{"question": "q", "choices": ["a", "b"], "answer": 2}], "line 1: the answer 2 is none of the choices A, B"),
        ([{"question": "q", "options": ["a"], "answer": 0}, {"answer": 1}], "line 2: the row does not fit the layout"),
        ([{"messages": []}], "line 1: messages must be a list"),
        ([{"a": 1, "b": 2}], "line 1: the layout is not known; the columns are: a, b"),
        (["text"], "line 1: expected an object with the keys id, prompt, task, answer"),
        ([{"prompt": "q", "task": "t", "id": 1, "answer": "2"}, []], "line 2: expected an object"),
        ([{"prompt": [{"role": "user", "content": [{"type": "image"}]}], "answer": "2"}], "type 'image'"),
        ([{"prompt": [*CHAT, {"role": "tool", "content": "x", "tool_call_id": "c"}], "answer": "2"}], "tool_call_id"),
    ],
)
def test_row_that_does_not_fit_its_layout_is_refused(tmp_path: Path, rows: list[Any], complaint: str) -> None:
    with pytest.raises(DataError) as refusal:
        read(tmp_path, *rows)
    assert complaint in str(refusal.value)
    assert str(refusal.value).startswith(str(tmp_path / "rows.jsonl"))


def test_rows_that_are_lists_of_turns_are_conversations(tmp_path: Path) -> None:
    row = [{"from": "human", "value": "1+1?"}, {"from": "assistant", "ground_truth": {"value": "2"}}]
    other = [{"from": "human", "value": "2+2?"}, {"from": "assistant", "ground_truth": {"value": "4"}}]
    first, second = read(tmp_path, row, other).records
    assert (first.prompt, first.answer, second.answer) == (tuple(CHAT), "2", "4")


def test_columns_map_nested_values_and_json_text(tmp_path: Path) -> None:
    row = {"item": json.dumps({"q": "1+1?", "all": ["2", "two"]}), "a.b": "x", "kind": "sums", "key": 7}
    columns = {"prompt": "item.q", "answer": "item.all.0", "task": "kind", "id": "key"}
    [record] = read(tmp_path, row, columns=columns, task="other").records
    assert (record.prompt, record.answer, record.task, record.id) == (tuple(CHAT), "2", "sums", "7")
    assert record.metadata["a.b"] == "x"
    assert read(tmp_path, row, columns={**columns, "answer": "a.b"}).records[0].answer == "x"
    with pytest.raises(DataError, match=r"line 1: no column `item\.all\.2`; the row has: item, a\.b, kind, key"):
        read(tmp_path, row, columns={**columns, "answer": "item.all.2"})


def test_columns_change_single_fields_of_a_recognised_layout(tmp_path: Path) -> None:
    row = {**VERL, "id": "same", "difficulty": "hard"}
    reading = read(tmp_path, row, {**row, "prompt": [{"role": "user", "content": "2+2?"}]}, columns={"id": None})
    assert reading.files[0].layout == "columns over verl"
    assert len({record.id for record in reading.records}) == 2
    [record] = read(tmp_path, row, columns={"task": "difficulty"}, task="other").records
    assert (record.id, record.task, record.answer) == ("same", "hard", "2")
    own = {"id": "a", "prompt": "1+1=", "task": "t", "answer": None, "gold": 2, "metadata": [1]}
    [record] = read(tmp_path, own, columns={"answer": "gold", "metadata": None}).records
    assert (record.prompt, record.answer, record.metadata) == ("1+1=", "2", {})
    with pytest.raises(DataError, match="line 1: missing answer"):
        read(tmp_path, own, columns={"task": "gold"})
    [record] = read(tmp_path, {**own, "metadata": None}, columns={"prompt": "prompt", "answer": "gold"}).records
    assert (record.prompt, record.answer) == (({"role": "user", "content": "1+1="},), "2")


def test_task_of_the_source_replaces_a_guess_but_not_the_task_column_of_rlad(tmp_path: Path) -> None:
    assert read(tmp_path, VERL, task="sums").records[0].task == "sums"
    own = {"prompt": "1+1=", "task": "t", "answer": "2"}
    assert read(tmp_path, own, task="sums").records[0].task == "t"
    assert read(tmp_path, {"id": 1, "prompt": "1+1=", "answer": "2"}, task="sums").records[0].task == "sums"
