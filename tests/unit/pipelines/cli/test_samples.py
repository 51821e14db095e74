"""`rlad samples` shows what the teacher thinks of each token, with and without colour, within 80 columns."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pipelines.cli.main import app
from pipelines.cli.tables.samples import print_samples
from rlad.contracts import ScoredGroup
from rlad.errors import ConfigError, RunDirectoryError
from rlad.samples.log import LoggedGroup, ResponseText, SampleLog
from rlad.samples.reading import read_samples, visible
from rlad.testing.records import make_group, make_scored_group, make_teacher_scores, make_verdicts

from ..console_text import WIDTH, terminal, text_of

STUDENT = [-0.1, -0.2, -0.3, -0.4]
TEACHER = [-0.1, -0.9, -5.3, float("nan")]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Return a run directory with two steps: one with a teacher, a later one without."""
    log = SampleLog(tmp_path / "samples", max_bytes=2**30, last_step=0)
    group = make_group([[1, 2, 3, 4]], uid="scored", answer="knave", behaviour_logprobs=STUDENT, policy_version=7)
    scored = ScoredGroup(
        group=group,
        verdicts=make_verdicts(group, 0.0),
        rewards=make_verdicts(group, 0.0).rewards,
        teacher_scores=make_teacher_scores(group, TEACHER),
    )
    long = " ".join(["knight"] * 40)
    log.write(8, [logged(scored, f"Who lies? {long}", "Bob is wrong!\x1b[2J", [3, 6, 12, 17])], left_out=0)
    plain = make_scored_group([[1]], rewards=1.0, teacher_logprobs=None, uid="plain")
    log.write(9, [logged(plain, "Who?", "Ann", [3])], left_out=0)
    return tmp_path


def logged(scored: ScoredGroup, prompt: str, text: str, ends: list[int]) -> LoggedGroup:
    response = ResponseText(text=text, token_ends=ends)
    return LoggedGroup(scored=scored, prompt=prompt, responses=[response], is_dropped=False, worker="rollout-0")


def test_output_without_colour_marks_what_the_teacher_finds_unlikely(run: Path) -> None:
    result = CliRunner().invoke(app, ["samples", str(run), "--step", "8"])
    assert result.exit_code == 0
    words = " ".join(result.output.split())
    assert "response 1 wrong reward 0 4 tokens version 7" in words
    assert "teacher: agrees 33%, disagrees 33%, mean log-ratio -1.90" in words
    assert "Bob is« wrong»!" in words
    assert "-5.00 ' wrong' at token 3: student -0.30, teacher -5.30" in words
    assert "\x1b" not in result.output
    assert max(map(len, result.output.splitlines())) <= WIDTH


def test_terminal_shows_agreement_as_colour(run: Path) -> None:
    console = terminal()
    print_samples(console, read_samples(run / "samples", step=8, limit=1))
    written = console.file.getvalue()  # type: ignore[attr-defined]
    assert "\x1b[32mBob\x1b[0m\x1b[33m is\x1b[0m\x1b[31m« wrong»\x1b[0m!" in written
    assert "\x1b[2J" not in written
    assert "!\\x1b[2J" in text_of(console)


def test_response_without_a_teacher_is_shown_plain(run: Path) -> None:
    output = CliRunner().invoke(app, ["samples", str(run), "--limit", "1"]).output
    assert "no teacher scored this response\nAnn" in output
    assert "log-ratio" not in output


def test_json_has_every_column_and_null_for_a_missing_score(run: Path) -> None:
    (row,) = json.loads(CliRunner().invoke(app, ["samples", str(run), "--worst", "--limit", "1", "--json"]).output)
    assert (row["step"], row["outcome"], row["token_ends"]) == (8, "wrong", [3, 6, 12, 17])
    assert row["teacher_logprobs"][3] is None
    assert row["student_logprobs"] == pytest.approx(STUDENT)


def test_disagreement_leaves_out_what_no_teacher_scored(run: Path) -> None:
    rows = json.loads(CliRunner().invoke(app, ["samples", str(run), "--disagree", "--json"]).output)
    assert [row["group_uid"] for row in rows] == ["scored"]


def test_orders_exclude_each_other(run: Path) -> None:
    result = CliRunner().invoke(app, ["samples", str(run), "--worst", "--best"])
    assert isinstance(result.exception, ConfigError)
    assert "got --worst and --best" in str(result.exception)


def test_run_without_samples_says_why(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["samples", str(tmp_path)])
    assert isinstance(result.exception, RunDirectoryError)


def test_control_characters_are_visible_and_line_breaks_stay() -> None:
    assert visible("a\x1b[31m\n\tb\r\u202e\x9b") == "a\\x1b[31m\n\tb\\r\\u202e\\x9b"
