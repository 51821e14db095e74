"""verl: chat messages, and the answer in `reward_model.ground_truth`."""

from __future__ import annotations

from typing import Any

from rlad.data.layouts.base import Columns, RawPrompt, has
from rlad.data.layouts.values import is_missing, parsed
from rlad.errors import DataError


class VerlLayout:
    """`data_source, prompt, ability, reward_model, extra_info`."""

    name = "verl"

    def matches(self, row: Columns) -> bool:
        reward_model = parsed(row.get("reward_model"))
        return has(row, "prompt") and isinstance(reward_model, dict) and "ground_truth" in reward_model

    def read(self, row: Columns) -> RawPrompt:
        reward_model = parsed(row.get("reward_model"))
        if not isinstance(reward_model, dict):
            raise DataError(f"reward_model must be a mapping with ground_truth, got {reward_model!r}")
        extra = parsed(row.get("extra_info"))
        metadata = dict(extra) if isinstance(extra, dict) else {}
        ability = row.get("ability")
        return RawPrompt(
            prompt=row.get("prompt"),
            answer=self.answer(reward_model.get("ground_truth")),
            id=row.get("id"),
            task=None if is_missing(ability) else str(ability).lower(),
            used=frozenset({"id", "prompt", "reward_model", *(["extra_info"] if metadata else [])}),
            metadata=metadata,
        )

    def answer(self, ground_truth: Any) -> Any:
        """Return the answer for a ground truth."""
        return ground_truth
