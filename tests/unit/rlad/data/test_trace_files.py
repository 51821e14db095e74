"""A trace folder survives kills, records its provenance, and is refused if it does not match a run."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from rlad.data.trace_files import MANIFEST, TraceFolder, TraceManifest, require_manifest
from rlad.errors import CorruptFileError, PlanError, RunDirectoryError

from .trace_prompts import PROVENANCE, R, T, U, W, prompt


def test_every_row_records_its_provenance(tmp_path: Path) -> None:
    folder = TraceFolder(tmp_path, PROVENANCE, prompts_per_part=1)
    folder.add(prompt(4, (W, R, R), (1, 2)))
    first, second = pq.read_table(tmp_path / "part-00000.parquet").to_pylist()
    assert second == {
        "prompt_position": 4,
        "prompt_id": "prompt-4",
        "task": "puzzle",
        "trace_index": 2,
        "response_ids": [4, 2],
        "response_text": "4 2",
        "behaviour_logprobs": [-4.0, -2.0],
        "reward": 1.0,
        "outcome": "correct",
        "teacher_fingerprint": "t" * 32,
        "tokenizer_fingerprint": "a" * 16,
        "dataset_fingerprint": "c" * 16,
        "temperature": 0.7,
        "top_p": 0.9,
        "max_response_tokens": 32,
    }
    assert first["trace_index"] == 1


def test_manifest_counts_every_response(tmp_path: Path) -> None:
    folder = TraceFolder(tmp_path, PROVENANCE, prompts_per_part=2)
    for one in (prompt(0, (R, R, R), (0, 1)), prompt(1, (W, U, T), ()), prompt(2, (W, R, W), (1,))):
        folder.add(one)
    manifest = folder.finish()
    assert TraceManifest.read(tmp_path) == manifest
    assert manifest.parts == ["part-00000.parquet", "part-00001.parquet"]
    assert manifest.provenance == PROVENANCE
    counts = manifest.counts
    assert (counts.prompts, counts.unsolved_prompts) == (3, 1)
    assert (counts.generated, counts.accepted, counts.surplus) == (9, 3, 1)
    assert counts.rejected == {"wrong": 3, "unparseable": 1, "timeout": 1, "error": 0}
    assert (counts.tokens, counts.accepted_tokens) == (18, 6)


def test_next_writer_knows_finished_prompts_solved_or_not(tmp_path: Path) -> None:
    first = TraceFolder(tmp_path, PROVENANCE, prompts_per_part=2)
    first.add(prompt(7, (R, W, W), (0,)))
    first.add(prompt(3, (W, W, W), ()))
    first.add(prompt(5, (R, R, W), (0, 1)))  # pending, and therefore lost
    second = TraceFolder(tmp_path, PROVENANCE, prompts_per_part=2)
    assert second.finished == {7, 3}
    second.add(prompt(5, (R, W, W), (0,)))
    manifest = second.finish()
    assert manifest.counts.prompts == 3
    assert manifest.counts.generated == 9
    assert manifest.counts.accepted == 2
    assert manifest.counts.seconds > 0


def test_partially_written_part_is_generated_again(tmp_path: Path) -> None:
    first = TraceFolder(tmp_path, PROVENANCE, prompts_per_part=1)
    first.add(prompt(0, (R, W, W), (0,)))
    first.add(prompt(1, (R, W, W), (0,)))
    whole = (tmp_path / "part-00001.parquet").read_bytes()
    (tmp_path / "part-00001.parquet").write_bytes(whole[: len(whole) // 2])
    (tmp_path / ".partial-part-00002.parquet").write_bytes(whole[:10])
    second = TraceFolder(tmp_path, PROVENANCE, prompts_per_part=1)
    assert second.finished == {0}
    second.add(prompt(1, (W, R, W), (1,)))
    manifest = second.finish()
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "SHA256SUMS",
        "part-00000.parquet",
        "part-00001.parquet",
        MANIFEST,
    ]
    assert [pq.read_table(path).column("trace_index").to_pylist() for path in manifest.part_paths(tmp_path)] == [
        [0],
        [1],
    ]


def test_parts_of_a_killed_process_are_complete(tmp_path: Path) -> None:
    program = f"""
import itertools
from pathlib import Path
from trace_prompts import PROVENANCE, R, W, prompt
from rlad.data.trace_files import TraceFolder
folder = TraceFolder(Path({str(tmp_path)!r}), PROVENANCE, prompts_per_part=3)
for position in itertools.count():
    folder.add(prompt(position, (R, W, W), (0,)))
    print(position, flush=True)
"""
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parents[4])]),
    }
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if int(line) >= 50:
                break
        os.kill(process.pid, signal.SIGKILL)
    finished = TraceFolder(tmp_path, PROVENANCE, prompts_per_part=3).finished
    assert len(finished) >= 50
    assert finished == set(range(len(finished)))


@pytest.mark.parametrize(("is_moved", "finished"), [(False, {0}), (True, {0, 1})])
def test_part_is_kept_as_soon_as_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_moved: bool, finished: set[int]
) -> None:
    """The writer ends directly before or after it renames the second part."""
    folder = TraceFolder(tmp_path, PROVENANCE, prompts_per_part=1)
    folder.add(prompt(0, (R, W, W), (0,)))

    def end(source: Path, target: Path) -> None:
        if is_moved:
            source.rename(target)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("rlad.data.trace_files.move_into_place", end)
        with pytest.raises(KeyboardInterrupt):
            folder.add(prompt(1, (R, W, W), (0,)))
    assert TraceFolder(tmp_path, PROVENANCE, prompts_per_part=1).finished == finished


def test_folder_with_another_provenance_is_refused(tmp_path: Path) -> None:
    TraceFolder(tmp_path, PROVENANCE, prompts_per_part=1).add(prompt(0, (R, W, W), (0,)))
    other = dataclasses.replace(PROVENANCE, teacher="u" * 32, temperature=1.0)
    with pytest.raises(RunDirectoryError, match="another teacher, temperature"):
        TraceFolder(tmp_path, other, prompts_per_part=1)


@pytest.mark.parametrize(
    ("changed", "named"), [("tokenizer", "tokenizer"), ("template", "chat template"), ("dataset", "dataset")]
)
def test_traces_that_do_not_match_a_run_are_refused(changed: str, named: str) -> None:
    fitting = {"tokenizer": PROVENANCE.tokenizer, "template": PROVENANCE.template, "dataset": PROVENANCE.dataset}
    PROVENANCE.require_fits(**fitting, path=Path("traces"))
    with pytest.raises(PlanError, match=f"expected {named} {'f' * 16}, got {getattr(PROVENANCE, changed)}"):
        PROVENANCE.require_fits(**{**fitting, changed: "f" * 16}, path=Path("traces"))


def test_missing_or_incomplete_traces_are_refused(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="no traces at"):
        require_manifest(tmp_path / "nowhere")
    folder = TraceFolder(tmp_path, PROVENANCE, prompts_per_part=1)
    folder.add(prompt(0, (R, W, W), (0,)))
    with pytest.raises(PlanError, match="not complete; resume the run"):
        require_manifest(tmp_path)
    folder.finish()
    assert json.loads((tmp_path / MANIFEST).read_text())["counts"]["accepted"] == 1
    (tmp_path / "part-00000.parquet").unlink()
    with pytest.raises(CorruptFileError, match=r"part-00000\.parquet is missing"):
        require_manifest(tmp_path).part_paths(tmp_path)
