"""A checkpoint is the old or the new one, and loading one never runs code."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

os.environ.setdefault("DS_ACCELERATOR", "cpu")
import torch.distributed as dist
from deepspeed.runtime.zero.config import ZeroStageEnum

from actors.engines.zero_engine.checkpoint_files import SafeCheckpointEngine, require_intact, write_checkpoint
from actors.learner.checkpoints import drop_unusable_list, newest_checkpoint
from rlad.errors import CorruptFileError
from rlad.integrity.manifest import MANIFEST, write_manifest

pytestmark = pytest.mark.filterwarnings("default", "error:::(rlad|actors|tests)\\b")  # DeepSpeed's imports warn


class RunsCode:
    """Object whose unpickling creates a file."""

    def __init__(self, marker: Path) -> None:
        self._marker = marker

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self._marker),)


@pytest.fixture(scope="module", autouse=True)
def process_group() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    engine, directory = SafeCheckpointEngine(), tmp_path / "step-000003"
    path = directory / "zero" / "model_states.pt"
    path.parent.mkdir(parents=True)
    write_checkpoint(engine, directory, lambda: engine.save({"module": torch.arange(200.0), "step": 3}, str(path)))
    return directory


def test_an_intact_checkpoint_is_loaded(checkpoint: Path) -> None:
    require_intact(checkpoint)
    state = SafeCheckpointEngine().load(str(checkpoint / "zero" / "model_states.pt"))
    assert state["step"] == 3
    assert torch.equal(state["module"], torch.arange(200.0))


def test_a_stage_is_written_so_that_it_is_loaded_under_every_release_of_python(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Python 3.11.2 pickles enum members as this replacement does."""
    monkeypatch.setattr(ZeroStageEnum, "__reduce_ex__", lambda stage, protocol: (getattr, (type(stage), stage.name)))
    engine, path = SafeCheckpointEngine(), tmp_path / "zero_pp_rank_0_mp_rank_00_optim_states.pt"
    write_checkpoint(engine, tmp_path, lambda: engine.save({"zero_stage": ZeroStageEnum.weights}, str(path)))
    require_intact(tmp_path)
    assert engine.load(str(path)) == {"zero_stage": ZeroStageEnum.weights}


def test_a_planted_pickle_is_refused_and_does_not_run_even_with_a_matching_manifest(
    checkpoint: Path, tmp_path: Path
) -> None:
    marker, path = tmp_path / "code-has-run", checkpoint / "zero" / "model_states.pt"
    torch.save({"module": torch.arange(200.0), "step": RunsCode(marker)}, path)
    write_manifest(checkpoint)
    with pytest.raises(CorruptFileError, match=r"model_states\.pt is refused: loading it would run .*mkdir"):
        require_intact(checkpoint)
    with pytest.raises(CorruptFileError, match="cannot be loaded"):
        SafeCheckpointEngine().load(str(path))
    assert not marker.exists()
    torch.load(path, weights_only=False)
    assert marker.exists(), "the pickle would run, if it were loaded without restriction"


def test_every_flipped_bit_is_found(checkpoint: Path) -> None:
    chance = random.Random(3)
    for _ in range(25):
        path = chance.choice([checkpoint / MANIFEST, checkpoint / "zero" / "model_states.pt"])
        honest = path.read_bytes()
        changed = bytearray(honest)
        changed[chance.randrange(len(changed))] ^= 1 << chance.randrange(8)
        path.write_bytes(changed)
        with pytest.raises(CorruptFileError, match="Delete the directory of this checkpoint"):
            require_intact(checkpoint)
        path.write_bytes(honest)
    require_intact(checkpoint)


@pytest.mark.timeout(120)
def test_a_kill_at_any_call_leaves_the_old_or_the_new_checkpoint_and_a_full_disk_the_old(tmp_path: Path) -> None:
    program = Path(__file__).with_name("checkpoint_writer.py")
    root = Path(__file__).parents[5]
    result = subprocess.run(
        [sys.executable, str(program), str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
        env={**os.environ, "PYTHONPATH": str(root)},
    )
    assert result.returncode == 0, result.stderr
    lines = [json.loads(line) for line in result.stdout.splitlines() if line.startswith("{")]
    calls = {line["call"] for line in lines if "call" in line}
    ends = [line for line in lines if "was_killed" in line]
    assert calls == {"fsync", "rename", "replace", "open"}
    assert len(ends) > 10
    assert {end["found"] for end in ends if end["was_killed"]} == {1, 2}
    assert [end["found"] for end in ends if not end["was_killed"]] == [2]
    [full] = [line for line in lines if "full" in line]
    assert full["found"] == 1
    assert "cannot write" in full["full"]
    assert "continue the run with --resume" in full["full"]


def test_the_newest_checkpoint_counts_not_the_list_of_ray_train(checkpoint: Path) -> None:
    folder = checkpoint.parent
    for other in ("step-000002", ".partial-step-000010", "step-list"):
        (folder / other).mkdir()
    assert newest_checkpoint(folder) == checkpoint
    assert newest_checkpoint(folder / "nowhere") is None
    (folder / "step-000010").mkdir()
    with pytest.raises(CorruptFileError, match=r"step-000010 has no SHA256SUMS.*Delete the directory"):
        require_intact(folder / "step-000010")
    results = [{"checkpoint_dir_name": "step-000003"}]
    listed = folder / "checkpoint_manager_snapshot.json"
    usable = json.dumps({"checkpoint_results": results, "latest_checkpoint_result": results[0]})
    for content, is_kept in ((usable, True), (usable.replace("3", "7"), False), (usable[:-5], False), ("[]", False)):
        listed.write_text(content)
        drop_unusable_list(folder)
        assert listed.exists() == is_kept
