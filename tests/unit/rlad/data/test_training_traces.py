"""A run trains on its own copy of the traces, in an order independent of their generation."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from rlad.contracts import Outcome
from rlad.data.trace_files import TraceFolder
from rlad.data.trace_records import TracedPrompt
from rlad.data.training_traces import TrainingTraces, write_training_traces
from rlad.errors import DataError

from .trace_prompts import PROVENANCE, R, W, prompt

A, B, C = prompt(0, (R, R, R), (0, 2)), prompt(1, (W, R, R), (1, 2)), prompt(2, (R, R, R), (0, 1, 2))
UNSOLVED = prompt(3, (W, W, W), ())


def training_traces(
    tmp_path: Path,
    prompts: Sequence[TracedPrompt],
    *,
    per_part: int = 1,
    max_prompts: int | None = None,
    max_accepted: int | None = None,
) -> TrainingTraces:
    folder = TraceFolder(tmp_path / "traces", PROVENANCE, prompts_per_part=per_part)
    for one in prompts:
        folder.add(one)
    parts = folder.finish().part_paths(tmp_path / "traces")
    target = tmp_path / "training.arrow"
    write_training_traces(parts, target, max_prompts=max_prompts, max_accepted_per_prompt=max_accepted)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["traces", "training.arrow", "training.arrow.sha256"]
    return TrainingTraces(target)


def names(traces: TrainingTraces) -> list[tuple[int, int]]:
    return [(traces[index].prompt_position, traces[index].trace_index) for index in range(len(traces))]


def test_traces_round_trip(tmp_path: Path) -> None:
    traces = training_traces(tmp_path, [C, UNSOLVED, A, B], per_part=3)
    assert names(traces) == [(0, 0), (0, 2), (1, 1), (1, 2), (2, 0), (2, 1), (2, 2)]
    assert traces.prompt_positions.tolist() == [0, 0, 1, 1, 2, 2, 2]
    for index, (position, number) in enumerate(names(traces)):
        trace = traces[index]
        np.testing.assert_array_equal(trace.response_ids, np.array([position, number], np.int32), strict=True)
        np.testing.assert_array_equal(trace.behaviour_logprobs, np.array([-position, -number], np.float32), strict=True)
        assert (trace.reward, trace.outcome) == (1.0, Outcome.CORRECT)


def test_order_does_not_depend_on_the_order_of_generation(tmp_path: Path) -> None:
    (tmp_path / "first").mkdir()
    (tmp_path / "second").mkdir()
    first = training_traces(tmp_path / "first", [A, B, C], per_part=2)
    second = training_traces(tmp_path / "second", [C, UNSOLVED, B, A])
    assert names(first) == names(second)
    assert first.fingerprint == second.fingerprint


def test_fingerprint_covers_tokens(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "other").mkdir()
    changed = prompt(1, (W, R, R), (1, 2))
    changed.traces[0].response_ids[0] = 9
    one, other = training_traces(tmp_path / "one", [A, B]), training_traces(tmp_path / "other", [A, changed])
    assert names(one) == names(other)
    assert one.fingerprint != other.fingerprint


def test_prompts_and_traces_per_prompt_can_be_limited(tmp_path: Path) -> None:
    traces = training_traces(tmp_path, [C, B, A], per_part=2, max_prompts=2, max_accepted=1)
    assert names(traces) == [(0, 0), (1, 1)]


def test_file_without_a_trace_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no trace"):
        training_traces(tmp_path, [UNSOLVED])
