"""DAPO-Math: verl's columns with data source `math_dapo`."""

from __future__ import annotations

from rlad.data.layouts.base import Columns
from rlad.data.layouts.frameworks.verl import VerlLayout


class DapoLayout(VerlLayout):
    """verl's columns. The prompts contain DAPO's instruction to end with `Answer: $Answer`."""

    name = "DAPO"

    def matches(self, row: Columns) -> bool:
        return super().matches(row) and "dapo" in str(row.get("data_source")).lower()
