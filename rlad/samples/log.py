"""The sample log of a run: one parquet file a step, one row a response.

    step-00000012.parquet    the logged groups of the step after which 12 steps were trained

A part appears whole or not at all. A step that is trained again replaces its part, so no step is logged twice. The
oldest parts are deleted when the log exceeds its size.
"""

from __future__ import annotations

import io
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from rlad.contracts import FinishReason, Outcome, RolloutGroup, ScoredGroup
from rlad.integrity.durable import write_atomically

logger = logging.getLogger(__name__)

_NAME = re.compile(r"step-(\d{8})\.parquet")
# A step takes at most this share of the log, so that the log covers several steps.
_STEP_SHARE = 4
# Upper bound of the bytes that a response token takes in a part: 20 in columns, and its text.
_BYTES_PER_TOKEN = 32

SCHEMA = pa.schema(
    [
        ("step", pa.int32()),
        ("group_uid", pa.string()),
        ("attempt", pa.int32()),
        ("prompt_id", pa.string()),
        ("task", pa.string()),
        ("prompt", pa.string()),
        ("answer", pa.string()),
        ("response_index", pa.int32()),
        ("response", pa.string()),
        ("reward", pa.float32()),
        ("shaped_reward", pa.float32()),
        ("outcome", pa.string()),
        ("finish_reason", pa.string()),
        ("is_dropped", pa.bool_()),
        ("worker", pa.string()),
        ("temperature", pa.float32()),
        ("log_ratio_mean", pa.float32()),
        ("response_ids", pa.list_(pa.int32())),
        ("token_ends", pa.list_(pa.int32())),
        ("policy_versions", pa.list_(pa.int32())),
        ("student_logprobs", pa.list_(pa.float32())),
        ("teacher_logprobs", pa.list_(pa.float32())),
    ]
)
"""Columns of a part.

`step` counts trained steps, as in metrics.jsonl. `token_ends` holds the end of each token in `response`, in characters.
`log_ratio_mean` is the mean over the tokens of the teacher's log-probability less the student's, in nats; it and
`teacher_logprobs` are null for groups that no teacher scored.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class ResponseText:
    """Text of a response.

    Attributes:
        text: The text, special tokens included.
        token_ends: End of each token in the text, in characters.
    """

    text: str
    token_ends: Sequence[int]


@dataclass(frozen=True, slots=True, kw_only=True)
class LoggedGroup:
    """A sampled group to log.

    Attributes:
        scored: The group with verdicts, rewards and the scores of its teacher.
        prompt: Text of the prompt, special tokens included.
        responses: Texts of the responses.
        is_dropped: Whether another group took its place, so that it was not trained on.
        worker: Name of the rollout worker.
    """

    scored: ScoredGroup
    prompt: str
    responses: Sequence[ResponseText]
    is_dropped: bool
    worker: str


def size_of(num_tokens: int) -> int:
    """Return an upper bound of the bytes that response tokens take in the log."""
    return num_tokens * _BYTES_PER_TOKEN


def max_step_bytes(max_bytes: int) -> int:
    """Return the maximum size of the groups of one step, as `size_of` estimates it, in a log of `max_bytes`."""
    return max_bytes // _STEP_SHARE


class SampleLog:
    """Writer of a sample log. A log has one writer at a time."""

    def __init__(self, folder: Path, *, max_bytes: int, last_step: int) -> None:
        """Open or create the log, and delete the parts of steps that will be trained again.

        Args:
            folder: Folder of the log.
            max_bytes: Maximum size of all parts together.
            last_step: Number of trained steps of the checkpoint from which the run starts.

        Raises:
            StorageError: The disk refused it.
        """
        self._folder, self._max_bytes = folder, max_bytes
        folder.mkdir(parents=True, exist_ok=True)
        for leftover in folder.glob(".step-*"):
            leftover.unlink()
        for step, part in parts(folder).items():
            if step > last_step:
                part.unlink()

    def write(self, step: int, groups: Sequence[LoggedGroup], *, left_out: int) -> None:
        """Write the part of a step, in place of an earlier one, and delete the oldest parts beyond the maximum size.

        Args:
            step: Number of trained steps, so the first is 1.
            groups: Groups of the step; none writes no part.
            left_out: Number of groups that were chosen and left out, for lack of room or because they were lost.

        Raises:
            StorageError: The disk refused it.
        """
        if not groups:
            return
        rows = [row for group in groups for row in _rows(step, group)]
        schema = SCHEMA.with_metadata({"rlad.left_out": str(left_out)})
        content = io.BytesIO()
        pq.write_table(pa.Table.from_pylist(rows, schema=schema), content, compression="zstd", write_page_checksum=True)
        write_atomically(self._folder / f"step-{step:08d}.parquet", content.getvalue())
        self._delete_oldest()

    def _delete_oldest(self) -> None:
        kept = parts(self._folder)
        sizes = {step: part.stat().st_size for step, part in kept.items()}
        excess = sum(sizes.values()) - self._max_bytes
        for step, size in sorted(sizes.items()):
            if excess <= 0:
                break
            kept[step].unlink()
            excess -= size
            logger.info("samples=deleted step=%d bytes=%d", step, size)


def parts(folder: Path) -> dict[int, Path]:
    """Return the parts of a log by step, in order; empty for a log that does not exist."""
    found = {int(match[1]): path for path in folder.glob("*") if (match := _NAME.fullmatch(path.name))}
    return dict(sorted(found.items()))


def _rows(step: int, logged: LoggedGroup) -> list[dict[str, object]]:
    scored, group = logged.scored, logged.scored.group
    return [
        {
            "step": step,
            "group_uid": group.uid,
            "attempt": group.attempt,
            "prompt_id": group.prompt_id,
            "task": group.task,
            "prompt": logged.prompt,
            "answer": group.answer,
            "response_index": index,
            "response": response.text,
            "reward": float(scored.verdicts.rewards[index]),
            "shaped_reward": float(scored.rewards[index]),
            "outcome": Outcome(int(scored.verdicts.outcomes[index])).name.lower(),
            "finish_reason": FinishReason(int(group.finish_reasons[index])).name.lower(),
            "is_dropped": logged.is_dropped,
            "worker": logged.worker,
            "temperature": group.temperature,
            "response_ids": group.response_ids[group.response(index)],
            "token_ends": response.token_ends,
            "policy_versions": group.policy_versions[group.response(index)],
            "student_logprobs": group.behaviour_logprobs[group.response(index)],
            **_teacher_columns(scored, group, index),
        }
        for index, response in enumerate(logged.responses)
    ]


def _teacher_columns(scored: ScoredGroup, group: RolloutGroup, index: int) -> dict[str, object]:
    if scored.teacher_scores is None:
        return {"teacher_logprobs": None, "log_ratio_mean": None}
    own = group.response(index)
    teacher = scored.teacher_scores.logprobs[own]
    ratios = (teacher - group.behaviour_logprobs[own])[np.isfinite(teacher)]
    return {
        "teacher_logprobs": teacher,
        "log_ratio_mean": float(ratios.mean()) if len(ratios) else None,
    }
