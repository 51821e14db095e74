"""Tests of AGENTS.md and CONTRIBUTING.md: every path that they name exists, and every make target too."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
GUIDES = ["AGENTS.md", "CONTRIBUTING.md"]
TOP_LEVEL_FILES = re.compile(r"[\w.]+\.(md|toml|yaml)")


def quoted(guide: str) -> list[tuple[str, bool]]:
    """Return each text in backquotes, and whether the guide marks it as reserved."""
    text = re.sub(r"```.*?```", "", (ROOT / guide).read_text(), flags=re.DOTALL)
    return [(quote, bool(mark)) for quote, mark in re.findall(r"`([^`]+)`( \(reserved\))?", text)]


def paths_in(guide: str, *, reserved: bool) -> list[str]:
    """Return the paths that a guide names: folders end with a slash, files have an ending."""
    known = {path.name for path in ROOT.iterdir()}
    return [
        quote
        for quote, mark in quoted(guide)
        if mark == reserved
        and " " not in quote
        and (TOP_LEVEL_FILES.fullmatch(quote) or (quote.split("/")[0] in known and "/" in quote))
    ]


@pytest.mark.parametrize("guide", GUIDES)
def test_paths_in_the_guide_exist(guide: str) -> None:
    paths = paths_in(guide, reserved=False)
    assert len(paths) > 15
    assert [path for path in paths if not (ROOT / path).exists()] == []


@pytest.mark.parametrize("guide", GUIDES)
def test_reserved_folders_do_not_exist_yet(guide: str) -> None:
    paths = paths_in(guide, reserved=True)
    assert set(paths) == {"pipelines/monitoring/"}
    assert [path for path in paths if (ROOT / path).exists()] == []


@pytest.mark.parametrize("guide", GUIDES)
def test_make_targets_in_the_guide_exist(guide: str) -> None:
    targets = set(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"\bmake ([a-z0-9-]+)", (ROOT / guide).read_text()))
    assert named
    assert named - targets == set()


def test_newcomers_questions_have_one_answer_each() -> None:
    rows = re.findall(r"^\| ([^|]*\?) \| (.+) \|$", (ROOT / "AGENTS.md").read_text(), re.MULTILINE)
    answers = dict(rows)
    assert len(answers) == len(rows) > 15
    assert "`pipelines/training/step_loop.py`" in answers["Where is the step loop?"]
    assert "`actors/teacher/client.py`" in answers["Where does a group's score come from?"]
    for feature in ("an objective", "a verifier", "a prompt layout", "a tracker"):
        assert f"Where do I add {feature}?" in answers
    assert "What may import what?" in answers
