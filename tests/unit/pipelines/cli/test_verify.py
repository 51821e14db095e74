"""`rlad verify`: outcomes and doubtful verdicts of a file of responses."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest
from typer.testing import CliRunner, Result

from actors.verifier.killable_process import Judgement
from pipelines.cli.main import app
from pipelines.resolution.judged_rows import AnsweredRow, doubt_of, read_answered_rows
from rlad.contracts import Outcome
from rlad.errors import ConfigError, DataError

ROWS = [
    {"response": r"so \boxed{5}", "answer": "5"},
    {"response": r"so \boxed{6}", "answer": "5"},
    {"response": "it is clear", "answer": "5"},
    {"response": r"\boxed{5}", "answer": "????"},
    {"response": r"\boxed{9^{9^{9^{9^9}}}}", "answer": "7"},
]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def verify(*arguments: str | Path) -> Result:
    runner = CliRunner(env={"COLUMNS": "80", "TERMINAL_WIDTH": "80"})
    return runner.invoke(app, ["verify", *map(str, arguments)], catch_exceptions=True)


def test_outcomes_and_doubtful_verdicts_fit_80_columns_and_are_json(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", ROWS)
    settings = ("--verifier", "{name: math_answer}", "--timeout", "2", "--processes", "1")
    result = verify(path, *settings)
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert max(len(line) for line in lines if str(path) not in line) <= 80
    table = {cells[0]: cells[1:3] for line in lines if len(cells := line.strip("│").split()) > 3}
    for outcome in ("correct", "wrong", "unparseable", "timeout", "error"):
        assert next(cell for cell in table[outcome] if cell != "│") == "1"
    assert "20.0%" in result.stdout
    # A long path is broken across lines.
    assert f"{path},line4:theverifiercannotjudgeit" in "".join(result.stdout.split())

    report = json.loads(verify(path, *settings, "--json").stdout)
    assert {name: each["count"] for name, each in report["outcomes"].items()} == {
        "correct": 1,
        "wrong": 1,
        "unparseable": 1,
        "timeout": 1,
        "error": 1,
    }
    assert report["mean_reward"] == 0.2
    assert [(each["location"].rpartition("line ")[2], each["outcome"]) for each in report["doubtful"]] == [
        ("3", "unparseable"),
        ("4", "error"),
        ("5", "timeout"),
    ]


def test_formats_columns_and_lists_of_responses_are_read(tmp_path: Path) -> None:
    nested = [{"completions": ["a", "b"], "reward_model": {"ground_truth": 7}}]
    table = pa.Table.from_pylist(nested)
    pyarrow.parquet.write_table(table, tmp_path / "rows.parquet")
    rows = read_answered_rows(str(tmp_path / "rows.parquet"))
    assert [(row.response, row.answer) for row in rows] == [("a", "7"), ("b", "7")]
    assert rows[1].location.endswith("row 1, response 2")
    with (tmp_path / "rows.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerows([["mine", "meta"], ["text", '{"gold": "5"}'], ["more", '{"gold": "6"}']])
    found = read_answered_rows(str(tmp_path / "rows.csv"), response="mine", answer="meta.gold", limit=1)
    assert [(row.response, row.answer) for row in found] == [("text", "5")]


@pytest.mark.parametrize(
    ("rows", "arguments", "message"),
    [
        ([{"prompt": "p", "answer": "5"}], (), "line 1: no column of the response .*the row has: answer, prompt"),
        ([{"response": "r"}], (), "line 1: no column of the answer .*--answer COLUMN"),
        ([{"response": "r", "answer": "5"}], ("--answer", "gold"), "no value in column 'gold'"),
        ([{"response": 5, "answer": "5"}], (), "the response must be text, got int"),
        ([{"response": [], "answer": "5"}], (), "holds no rows"),
    ],
)
def test_unreadable_rows_are_named_with_the_remedy(
    tmp_path: Path, rows: list[dict[str, Any]], arguments: tuple[str, ...], message: str
) -> None:
    result = verify(write(tmp_path / "rows.jsonl", rows), "--verifier", "multiple_choice", *arguments)
    assert isinstance(result.exception, DataError)
    assert re.search(message, str(result.exception))


@pytest.mark.parametrize(
    ("verifier", "message"),
    [
        ("{name: math}", "does not match any of the expected tags"),
        ("{name: [", "is not valid YAML"),
        ("5", "must be settings such as"),
        ("{name: reward_model, path: x}", "reads no answers"),
    ],
)
def test_faulty_verifiers_are_refused_before_a_process_starts(tmp_path: Path, verifier: str, message: str) -> None:
    result = verify(write(tmp_path / "rows.jsonl", ROWS), "--verifier", verifier)
    assert isinstance(result.exception, ConfigError)
    assert message in str(result.exception)


def test_file_whose_every_answer_is_unreadable_exits_with_status_1(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", [{"response": "B", "answer": "the second"}])
    assert verify(path, "--verifier", "multiple_choice").exit_code == 1


@pytest.mark.parametrize(
    ("response", "answer", "outcome", "doubt"),
    [
        (r"\boxed{5}", "5", Outcome.CORRECT, None),
        (r"\boxed{5}", "6", Outcome.WRONG, None),
        (r"\boxed{5}", "6", Outcome.CORRECT, "correct, but the numbers look different"),
        (r"\boxed{5.0}", "5", Outcome.WRONG, "wrong, but the answer looks equal"),
        (r"\boxed{\frac{1}{2}}", "0.5", Outcome.WRONG, "wrong, but the answer looks equal"),
        (r"\boxed{0.3333333}", "1/3", Outcome.CORRECT, None),
        (r"\boxed{0.33}", "1/3", Outcome.CORRECT, "correct, but the numbers look different"),
        (r"\boxed{1/0}", "5", Outcome.WRONG, None),
        ("So\n\nx = 5.", "x=5", Outcome.UNPARSEABLE, "unparseable, but the answer looks equal"),
        ("<answer>$x + 1$</answer>", "1+x", Outcome.CORRECT, None),  # differing texts show nothing
        ("<think>5", "5", Outcome.UNPARSEABLE, "no answer found"),
        ("  ", "5", Outcome.UNPARSEABLE, "the response is empty"),
        ("5", "5", Outcome.TIMEOUT, "no verdict within 2 s"),
    ],
)
def test_verdicts_with_which_a_simple_comparison_disagrees_are_doubtful(
    response: str, answer: str, outcome: Outcome, doubt: str | None
) -> None:
    row = AnsweredRow(location="rows.jsonl, line 1", response=response, answer=answer)
    assert doubt_of(row, Judgement(reward=0.0, outcome=outcome, elapsed_s=0.0), timeout_s=2.0) == doubt
