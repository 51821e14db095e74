"""The sample log holds each step once, whole, and within its size."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest

from rlad.errors import CorruptFileError, RunDirectoryError
from rlad.samples.log import SampleLog, parts
from rlad.samples.reading import SampleOrder, log_ratios, read_samples

from .logged_groups import logged_group

# Writes parts until it is killed.
WRITER = """
import itertools, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from logged_groups import logged_group
from rlad.samples.log import SampleLog
log = SampleLog(Path(sys.argv[1]), max_bytes=2**40, last_step=0)
for step in itertools.count(1):
    log.write(step, [logged_group(f"g:{step}", [1.0] * 8, tokens_per_response=500)], left_out=0)
    print(step, flush=True)
"""


def log_at(folder: Path, *, max_bytes: int = 2**30, last_step: int = 0) -> SampleLog:
    return SampleLog(folder, max_bytes=max_bytes, last_step=last_step)


def test_pandas_reads_what_was_sampled_judged_and_scored(tmp_path: Path) -> None:
    group = logged_group("g:0", [1.0, 0.0], teacher=[-1.5, -4.0])
    log_at(tmp_path).write(12, [group, logged_group("g:1", [0.0], is_dropped=True)], left_out=3)
    (part,) = parts(tmp_path).values()
    table = pd.read_parquet(part)
    first = table.iloc[0]
    assert table["step"].tolist() == [12, 12, 12]
    assert table["group_uid"].tolist() == ["g:0", "g:0", "g:1"]
    assert table["response"].tolist() == ["aa", "bb", "aa"]
    assert table["reward"].tolist() == [1.0, 0.0, 0.0]
    assert table["shaped_reward"].tolist() == [0.5, -0.5, -0.5]
    assert table["outcome"].tolist() == ["correct", "wrong", "wrong"]
    assert table["is_dropped"].tolist() == [False, False, True]
    assert (first["prompt"], first["answer"], first["worker"]) == ("question of g:0", "42", "rollout-0")
    assert first["response_ids"].tolist() == [7, 7]
    assert first["policy_versions"].tolist() == [3, 3]
    assert first["student_logprobs"].tolist() == [-1.0, -1.0]
    assert first["teacher_logprobs"].tolist() == [-1.5, -1.5]
    assert table["log_ratio_mean"].tolist()[:2] == [-0.5, -3.0]
    assert table.iloc[2]["teacher_logprobs"] is None
    assert pq.read_schema(part).metadata[b"rlad.left_out"] == b"3"


def test_continued_run_has_no_step_twice(tmp_path: Path) -> None:
    log = log_at(tmp_path)
    for step in (1, 2, 3, 4):
        log.write(step, [logged_group(f"first:{step}", [0.0])], left_out=0)
    (tmp_path / ".step-00000005.parquet.abc").write_bytes(b"cut short by a kill")
    continued = log_at(tmp_path, last_step=2)
    assert list(parts(tmp_path)) == [1, 2]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000001.parquet", "step-00000002.parquet"]
    continued.write(3, [logged_group("second:3", [0.0])], left_out=0)
    continued.write(3, [logged_group("third:3", [0.0])], left_out=0)
    assert [row["group_uid"] for row in read_samples(tmp_path, limit=9)] == ["third:3", "first:2", "first:1"]


def test_oldest_steps_are_deleted_beyond_the_size(tmp_path: Path) -> None:
    log_at(tmp_path / "one").write(1, [logged_group("g:1", [0.0])], left_out=0)
    size = next(iter(parts(tmp_path / "one").values())).stat().st_size
    log = log_at(tmp_path / "all", max_bytes=3 * size)
    for step in range(1, 7):
        log.write(step, [logged_group(f"g:{step}", [0.0])], left_out=0)
    assert list(parts(tmp_path / "all")) == [4, 5, 6]


def test_killed_writer_leaves_whole_parts_only(tmp_path: Path) -> None:
    command = [sys.executable, "-c", WRITER, str(tmp_path), str(Path(__file__).parent)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        written = [int(writer.stdout.readline()) for _ in range(20)]
        os.kill(writer.pid, signal.SIGKILL)
    rows = read_samples(tmp_path, limit=10_000)
    assert {row["step"] for row in rows} >= set(written)
    assert len(rows) == 8 * len(parts(tmp_path))


@pytest.mark.parametrize(
    ("order", "expected"),
    [
        (SampleOrder.NEWEST, ["g:2 a", "g:2 b", "g:1 a", "g:1 b"]),
        (SampleOrder.WORST, ["g:2 b", "g:1 a", "g:2 a", "g:1 b"]),
        (SampleOrder.BEST, ["g:1 b", "g:2 a", "g:1 a", "g:2 b"]),
        (SampleOrder.DISAGREE, ["g:1 b", "g:1 a"]),
    ],
)
def test_responses_are_ordered(tmp_path: Path, order: SampleOrder, expected: list[str]) -> None:
    log = log_at(tmp_path)
    log.write(1, [logged_group("g:1", [0.25, 1.0], teacher=[-1.0, -3.0])], left_out=0)
    log.write(2, [logged_group("g:2", [0.5, 0.0])], left_out=0)
    found = [f"{row['group_uid']} {row['response'][0]}" for row in read_samples(tmp_path, order=order, limit=4)]
    assert found == expected
    assert [f"{row['group_uid']} {row['response'][0]}" for row in read_samples(tmp_path, order=order, limit=1)] == (
        expected[:1]
    )


def test_one_step_can_be_read(tmp_path: Path) -> None:
    log = log_at(tmp_path)
    for step in (3, 5):
        log.write(step, [logged_group(f"g:{step}", [0.0])], left_out=0)
    assert [row["step"] for row in read_samples(tmp_path, step=3, limit=9)] == [3]
    with pytest.raises(RunDirectoryError, match="no samples of step 4 .* between 3 and 5"):
        read_samples(tmp_path, step=4, limit=9)


def test_missing_log_names_the_setting(tmp_path: Path) -> None:
    with pytest.raises(RunDirectoryError, match=r"samples\.share"):
        read_samples(tmp_path / "samples", limit=1)


@pytest.mark.parametrize("damage", ["flipped", "cut short"])
def test_damaged_part_is_refused(tmp_path: Path, damage: str) -> None:
    log_at(tmp_path).write(1, [logged_group("g:1", [0.0], tokens_per_response=100)], left_out=0)
    (part,) = parts(tmp_path).values()
    content = bytearray(part.read_bytes())
    content[100] ^= 0xFF
    part.write_bytes(content if damage == "flipped" else content[:-60])
    with pytest.raises(CorruptFileError, match="Delete the file"):
        read_samples(tmp_path, limit=1)


def test_token_without_a_finite_score_has_no_log_ratio(tmp_path: Path) -> None:
    group = logged_group("g:1", [0.0], teacher=[float("-inf")])
    log_at(tmp_path).write(1, [group], left_out=0)
    (row,) = read_samples(tmp_path, limit=1)
    assert row["log_ratio_mean"] is None
    assert [str(ratio) for ratio in log_ratios(row) or []] == ["nan", "nan"]
