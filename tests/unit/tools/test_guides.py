"""Tests of AGENTS.md and CONTRIBUTING.md: every path that they name exists, and every make target too."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
GUIDES = ["AGENTS.md", "CONTRIBUTING.md"]
TOP_LEVEL_FILES = re.compile(r"[\w.]+\.(md|toml|yaml)")


def paths_in(guide: str) -> list[str]:
    """Return the paths that a guide names: folders end with a slash, files have an ending."""
    text = re.sub(r"```.*?```", "", (ROOT / guide).read_text(), flags=re.DOTALL)
    known = {path.name for path in ROOT.iterdir()}
    return [
        quote
        for quote in re.findall(r"`([^`]+)`", text)
        if " " not in quote and (TOP_LEVEL_FILES.fullmatch(quote) or (quote.split("/")[0] in known and "/" in quote))
    ]


@pytest.mark.parametrize("guide", GUIDES)
def test_paths_in_the_guide_exist(guide: str) -> None:
    paths = paths_in(guide)
    assert len(paths) > 15
    assert [path for path in paths if not (ROOT / path).exists()] == []


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
