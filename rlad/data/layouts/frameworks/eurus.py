"""Eurus-2-RL (PRIME): verl's columns for mathematics and for programs with test cases."""

from __future__ import annotations

from typing import Any

from rlad.data.layouts.base import Columns
from rlad.data.layouts.frameworks.verl import VerlLayout
from rlad.data.layouts.programming.code_answers import answer_of_tests
from rlad.data.layouts.values import parsed

_SOURCES = {"taco", "apps", "codecontests", "codeforces"}


class EurusLayout(VerlLayout):
    """verl's columns, with tests as `{"inputs": [...], "outputs": [...]}` in the ground truth of programs."""

    name = "Eurus"

    def matches(self, row: Columns) -> bool:
        source = str(row.get("data_source")).lower()
        return super().matches(row) and (source in _SOURCES or source.startswith("numina_"))

    def answer(self, ground_truth: Any) -> Any:
        value = parsed(ground_truth)
        return answer_of_tests(value) if isinstance(value, dict) and "inputs" in value else ground_truth
