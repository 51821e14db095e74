"""Skywork-OR1: verl's columns, where a ground truth is the JSON text of a list of answers."""

from __future__ import annotations

from typing import Any

from rlad.data.layouts.base import Columns
from rlad.data.layouts.frameworks.verl import VerlLayout
from rlad.data.layouts.programming.code_answers import answer_of_tests
from rlad.data.layouts.values import parsed


class SkyworkLayout(VerlLayout):
    """verl's columns with `extra_info.model_difficulty`. Of several answers, the first one is used."""

    name = "Skywork-OR1"

    def matches(self, row: Columns) -> bool:
        if not super().matches(row):
            return False
        extra, ground_truth = parsed(row.get("extra_info")), parsed(row["reward_model"])["ground_truth"]
        is_named = "skywork" in str(row.get("data_source")).lower()
        has_difficulty = isinstance(extra, dict) and "model_difficulty" in extra
        return is_named or has_difficulty or (isinstance(ground_truth, str) and ground_truth.startswith('["'))

    def answer(self, ground_truth: Any) -> Any:
        value = parsed(ground_truth)
        if isinstance(value, list) and value and all(isinstance(item, str | int | float) for item in value):
            return value[0]
        return answer_of_tests(value) if isinstance(value, dict) else ground_truth
