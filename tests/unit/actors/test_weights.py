from __future__ import annotations

import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
import xxhash
from safetensors.torch import load

from actors.weights import NodeWeights, checksum, safetensors_bytes
from rlad.contracts import WeightsManifest
from rlad.errors import EngineError

CONTENT = np.arange(5000, dtype=np.uint8)
OTHER = CONTENT[::-1].copy()


def manifest_of(content: np.ndarray, version: int) -> WeightsManifest:
    return WeightsManifest(version=version, checksum=checksum(content), num_bytes=len(content))


@pytest.fixture
def hold_folder(tmp_path: Path):
    """Run another process that uses the folder of a run, until it is killed."""
    processes: list[subprocess.Popen[str]] = []

    def start(run_id: str) -> subprocess.Popen[str]:
        program = (
            "import sys; from pathlib import Path; from actors.weights import NodeWeights; "
            "weights = NodeWeights(sys.argv[1], Path(sys.argv[2])); print('in', flush=True); sys.stdin.read()"
        )
        process = subprocess.Popen([sys.executable, "-c", program, run_id, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        processes.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "in\n"
        return process

    yield start
    for process in processes:
        process.kill()
        process.wait()


def test_published_bytes_are_a_safetensors_file_of_the_tensors() -> None:
    tensors = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.tensor([1, 2], dtype=torch.bfloat16)}
    back = load(safetensors_bytes(tensors).tobytes())
    assert back.keys() == tensors.keys()
    assert all(torch.equal(back[name], tensor) for name, tensor in tensors.items())


def test_tied_weights_are_published_once_under_their_first_name() -> None:
    shared = torch.ones(2, 2)
    assert list(load(safetensors_bytes({"embed": shared, "head": shared}).tobytes())) == ["embed"]


def test_a_transposed_view_is_published_by_its_values() -> None:
    weight = torch.arange(4.0).reshape(2, 2)
    back = load(safetensors_bytes({"w": weight, "w_transposed": weight.T}).tobytes())
    assert back["w_transposed"].tolist() == [[0, 2], [1, 3]]


def test_checksum_is_xxh3_of_the_bytes() -> None:
    assert checksum(CONTENT) == xxhash.xxh3_128(CONTENT.tobytes()).hexdigest()


def test_weights_are_written_once_for_all_workers_of_a_node(tmp_path: Path) -> None:
    first, second = NodeWeights("run", tmp_path), NodeWeights("run", tmp_path)
    manifest = manifest_of(CONTENT, 1)
    path = first.write(manifest, CONTENT)
    inode = path.stat().st_ino
    assert second.path(manifest) == path
    assert second.write(manifest, CONTENT).stat().st_ino == inode
    assert path.read_bytes() == CONTENT.tobytes()


def test_workers_that_write_at_the_same_time_leave_one_whole_file(tmp_path: Path) -> None:
    content = np.random.default_rng(0).integers(0, 256, 5_000_000, np.uint8)
    manifest = manifest_of(content, 3)
    workers = [NodeWeights("run", tmp_path) for _ in range(4)]
    threads = [threading.Thread(target=worker.write, args=(manifest, content)) for worker in workers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    files = [path for path in (tmp_path / "rlad-run").iterdir() if path.suffix != ".lock"]
    assert files == [workers[0].path(manifest)]
    assert checksum(np.fromfile(files[0], np.uint8)) == manifest.checksum


def test_old_weights_are_removed_but_not_from_under_who_has_mapped_them(tmp_path: Path) -> None:
    weights = NodeWeights("run", tmp_path)
    old, new = manifest_of(CONTENT, 1), manifest_of(OTHER, 2)
    mapped = np.memmap(weights.write(old, CONTENT), np.uint8, mode="r")
    weights.write(new, OTHER)
    weights.keep_only(new)
    assert not weights.path(old).exists()
    assert weights.path(new).exists()
    assert checksum(np.asarray(mapped)) == old.checksum


def test_the_last_worker_to_leave_removes_the_folder(tmp_path: Path) -> None:
    first, second = NodeWeights("run", tmp_path), NodeWeights("run", tmp_path)
    first.close()
    assert (tmp_path / "rlad-run").is_dir()
    second.close()
    assert not (tmp_path / "rlad-run").exists()


def test_the_folder_of_a_run_killed_on_this_node_is_removed_by_the_next_run(tmp_path: Path, hold_folder) -> None:
    dead = hold_folder("dead")
    dead.send_signal(signal.SIGKILL)
    dead.wait()
    assert (tmp_path / "rlad-dead").is_dir()
    NodeWeights("next", tmp_path)
    assert not (tmp_path / "rlad-dead").exists()


def test_the_folder_of_a_living_run_is_left_alone(tmp_path: Path, hold_folder) -> None:
    hold_folder("living")
    NodeWeights("next", tmp_path).close()
    assert (tmp_path / "rlad-living").is_dir()


def test_what_is_not_a_run_of_ours_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "rlad-notes").mkdir()
    (tmp_path / "rlad-file").write_text("kept")
    NodeWeights("run", tmp_path).close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["rlad-file", "rlad-notes"]


def test_a_run_id_cannot_leave_the_folder(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="one path component"):
        NodeWeights("../elsewhere", tmp_path)


def test_only_the_owner_can_read_the_weights(tmp_path: Path) -> None:
    NodeWeights("run", tmp_path)
    assert (tmp_path / "rlad-run").stat().st_mode & 0o077 == 0
