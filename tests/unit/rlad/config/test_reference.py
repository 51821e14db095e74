"""The generated configuration reference."""

from __future__ import annotations

import re

import pytest

from rlad.config.reference import reference

PAGE = reference()
ROWS = [line for line in PAGE.splitlines() if line.startswith("| `")]


@pytest.mark.parametrize("row", [row for row in ROWS if not row.startswith("| `verifiers.")])
def test_each_setting_has_a_description(row: str) -> None:
    description = re.split(r"(?<!\\)\|", row)[4].strip()
    assert description.endswith((".", ")")), row


def test_links_lead_to_headings_of_the_page() -> None:
    headings = {
        re.sub(r"\s+", "-", re.sub(r"[^\w\s-]", "", line.lstrip("# "))).lower()
        for line in PAGE.splitlines()
        if line.startswith("#")
    }
    links = set(re.findall(r"\]\(#([^)]*)\)", PAGE.replace("\n", " ")))
    assert len(links) > 20
    assert links <= headings


def test_prose_wraps_at_100_columns() -> None:
    assert max(len(line) for line in PAGE.splitlines() if not line.startswith("|")) <= 100


def test_settings_of_shared_sections_are_listed_once() -> None:
    keys = [row.split("`")[1] for row in ROWS if row.startswith("| `objective.") and "name" not in row.split("`")[1]]
    repeated = {key for key in keys if keys.count(key) > 1}
    # Defaults and limits of these differ between objectives, or only the distilling ones have them.
    assert repeated == {"objective.estimator", "objective.top_k", "objective.reward_student"}
