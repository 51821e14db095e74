"""Alpaca: `instruction`, an optional `input`, and `output`."""

from __future__ import annotations

from rlad.data.layouts.base import Columns, RawPrompt, has


class AlpacaLayout:
    """`instruction, input, output`. The input follows the instruction after an empty line."""

    name = "alpaca"

    def matches(self, row: Columns) -> bool:
        return has(row, "instruction", "output")

    def read(self, row: Columns) -> RawPrompt:
        parts = [part for part in (row.get("instruction"), row.get("input")) if isinstance(part, str) and part]
        system = row.get("system")
        prompt: object = "\n\n".join(parts)
        if isinstance(system, str) and system:
            prompt = [{"role": "system", "content": system}, {"role": "user", "content": prompt}]
        return RawPrompt(
            prompt=prompt,
            answer=row.get("output"),
            id=row.get("id"),
            task=row.get("task"),
            used=frozenset({"id", "task", "instruction", "input", "output", "system"}),
        )
