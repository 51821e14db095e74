"""Reading of a sample log: which responses to show, and their rows."""

from __future__ import annotations

import enum
import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from rlad.errors import CorruptFileError, RunDirectoryError
from rlad.samples.log import parts

# Columns that decide about the order. The others hold one entry a token.
_ORDERING = ["reward", "log_ratio_mean"]

AGREES, DISAGREES = -0.5, -2.0
"""Log-ratios of a token, in nats: above the first the teacher agrees, at or below the second it disagrees.

A factor of e^0.5 = 1.6 is within the usual difference of two models, one of e^2 = 7.4 is not.
"""

# Everything that moves the cursor of a terminal, changes its state, or reverses the direction of text. Line breaks and
# tabs stay.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")


class SampleOrder(enum.Enum):
    """Order of responses.

    NEWEST: newest step first, in the order of the log. WORST, BEST: by the verifier's reward. DISAGREE: by the mean
    log-ratio of teacher and student, lowest first; responses without scores are left out.
    """

    NEWEST = "newest"
    WORST = "worst"
    BEST = "best"
    DISAGREE = "disagree"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Place:
    step: int
    row: int
    reward: float
    log_ratio_mean: float | None


def read_samples(
    folder: Path, *, order: SampleOrder = SampleOrder.NEWEST, step: int | None = None, limit: int
) -> list[dict[str, Any]]:
    """Read the first responses of a log in an order.

    Args:
        folder: Folder of the log.
        order: The order. Newer steps come first among equals.
        step: Step to read, as in metrics.jsonl; None reads all.
        limit: Maximum number of responses.

    Returns:
        Rows with the columns of `rlad.samples.log.SCHEMA`.

    Raises:
        RunDirectoryError: The log, or the step in it, does not exist.
        CorruptFileError: A part cannot be read.
    """
    found = parts(folder)
    if not found:
        raise RunDirectoryError(
            f"no samples at {folder}: the run has logged none yet, or its setting samples.share is 0"
        )
    if step is not None and step not in found:
        raise RunDirectoryError(
            f"no samples of step {step} at {folder}; logged steps lie between {min(found)} and {max(found)}: with "
            "samples.share below 1 a step may have no logged group, and the oldest are deleted beyond samples.max_mib"
        )
    chosen = found if step is None else {step: found[step]}
    places = _ordered([place for number, part in reversed(chosen.items()) for place in _places(number, part)], order)
    selected = places[:limit]
    rows: dict[tuple[int, int], dict[str, Any]] = {}
    for number in {place.step for place in selected}:
        wanted = [place.row for place in selected if place.step == number]
        with _readable(chosen[number]):
            table = pq.read_table(chosen[number], page_checksum_verification=True).take(pa.array(wanted))
            rows |= {(number, row): values for row, values in zip(wanted, table.to_pylist(), strict=True)}
    return [rows[place.step, place.row] for place in selected]


def _places(step: int, part: Path) -> list[_Place]:
    with _readable(part):
        rows = pq.read_table(part, columns=_ORDERING, page_checksum_verification=True).to_pylist()
    return [_Place(step=step, row=number, **row) for number, row in enumerate(rows)]


def _ordered(places: list[_Place], order: SampleOrder) -> list[_Place]:
    if order is SampleOrder.NEWEST:
        return places
    if order is SampleOrder.DISAGREE:
        scored = [place for place in places if place.log_ratio_mean is not None]
        return sorted(scored, key=lambda place: place.log_ratio_mean or 0.0)
    sign = 1 if order is SampleOrder.WORST else -1
    return sorted(places, key=lambda place: sign * place.reward)


@contextmanager
def _readable(part: Path) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, OSError, KeyError) as error:
        raise CorruptFileError(f"{part} is damaged: {error}. Delete the file; a run continues without it") from error


def log_ratios(row: dict[str, Any]) -> list[float] | None:
    """Return the teacher's log-probability less the student's for each token of a row; NaN where it has no score.

    None if no teacher scored the response.
    """
    if row["teacher_logprobs"] is None:
        return None
    pairs = zip(row["teacher_logprobs"], row["student_logprobs"], strict=True)
    return [teacher - student if math.isfinite(teacher) else math.nan for teacher, student in pairs]


def visible(text: str) -> str:
    """Replace control characters by their escape sequences: a response must not control a terminal or a page."""
    return _CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), text)
