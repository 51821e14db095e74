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
from safetensors.torch import load, save

from actors.weights import NodeWeights, checksum, require_published, safetensors_parts
from rlad.contracts import WeightsManifest
from rlad.errors import EngineError, WeightsMismatchError

CONTENT = np.arange(5000, dtype=np.uint8)
OTHER = CONTENT[::-1].copy()


def manifest_of(content: np.ndarray, version: int) -> WeightsManifest:
    return WeightsManifest(version=version, checksum=checksum([content]), num_bytes=len(content))


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


def file_of(tensors: dict[str, torch.Tensor]) -> bytes:
    return b"".join(part.tobytes() for part in safetensors_parts(tensors))


def test_published_bytes_are_the_safetensors_file_of_the_tensors() -> None:
    tensors = {
        "narrow": torch.tensor([1, 2, 3], dtype=torch.bfloat16),
        "wide": torch.arange(6.0).reshape(2, 3),
        "another": torch.arange(4.0, dtype=torch.float64),
        "scalar": torch.tensor(7.0),
        "empty": torch.zeros(0, 3),
        "größe": torch.ones(1),
    }
    assert file_of(tensors) == save(tensors), "what the format's own writer makes"


@pytest.mark.parametrize("dtype", [torch.int64, torch.float16, torch.int16, torch.float8_e4m3fn, torch.int8, torch.uint8, torch.bool], ids=str)
def test_every_type_of_tensor_comes_back(dtype: torch.dtype) -> None:
    tensor = torch.tensor([[0, 1], [1, 0]]).to(dtype)
    back = load(file_of({"w": tensor, "other": torch.ones(3)}))["w"]
    assert back.dtype == dtype
    assert torch.equal(back.float(), tensor.float())


def test_a_type_that_no_file_can_hold_is_refused() -> None:
    with pytest.raises(EngineError, match=r"weights of type torch\.complex64 cannot be published, w is"):
        safetensors_parts({"w": torch.zeros(1, dtype=torch.complex64)})


def test_what_is_published_is_the_tensors_own_memory() -> None:
    tensor = torch.zeros(5)
    _, view = safetensors_parts({"w": tensor})
    tensor[0] = 1
    assert view.view(np.float32).tolist() == [1, 0, 0, 0, 0]


def test_tied_weights_are_published_once_under_their_first_name() -> None:
    shared = torch.ones(2, 2)
    assert list(load(file_of({"embed": shared, "head": shared}))) == ["embed"]


def test_a_transposed_view_is_published_by_its_values() -> None:
    weight = torch.arange(4.0).reshape(2, 2)
    back = load(file_of({"w": weight, "w_transposed": weight.T}))
    assert back["w_transposed"].tolist() == [[0, 2], [1, 3]]


def test_checksum_is_xxh3_over_the_xxh3_of_each_bucket() -> None:
    """16 MiB and 5 bytes: two buckets, whose borders do not move with those of the parts."""
    content = np.random.default_rng(0).integers(0, 256, (16 << 20) + 5, np.uint8)
    expected = xxhash.xxh3_128(b"".join(xxhash.xxh3_128(part.tobytes()).digest() for part in (content[:-5], content[-5:]))).hexdigest()
    assert checksum([content]) == expected
    assert checksum([content[:7], content[7:7], content[7 : 9 << 20], content[9 << 20 :]]) == expected
    content[-1] ^= 1
    assert checksum([content]) != expected


def test_checksum_depends_on_the_order_of_buckets() -> None:
    first, second = (np.full(16 << 20, value, np.uint8) for value in (1, 2))
    assert checksum([first, second]) != checksum([second, first])


def test_weights_are_written_once_for_all_workers_of_a_node(tmp_path: Path) -> None:
    first, second = NodeWeights("run", tmp_path), NodeWeights("run", tmp_path)
    manifest = manifest_of(CONTENT, 1)
    path = first.write(manifest, [CONTENT])
    inode = path.stat().st_ino
    assert second.path(manifest) == path
    assert second.write(manifest, [CONTENT]).stat().st_ino == inode
    assert path.read_bytes() == CONTENT.tobytes()


def test_workers_that_write_at_the_same_time_leave_one_whole_file(tmp_path: Path) -> None:
    content = np.random.default_rng(0).integers(0, 256, 5_000_000, np.uint8)
    manifest = manifest_of(content, 3)
    workers = [NodeWeights("run", tmp_path) for _ in range(4)]
    threads = [threading.Thread(target=worker.write, args=(manifest, [content])) for worker in workers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    files = [path for path in (tmp_path / "rlad-run").iterdir() if path.suffix != ".lock"]
    assert files == [workers[0].path(manifest)]
    assert checksum([np.fromfile(files[0], np.uint8)]) == manifest.checksum


def test_a_file_of_many_parts_and_pieces_is_written_in_their_order(tmp_path: Path) -> None:
    """The middle part is written in three pieces, by different threads."""
    parts = [CONTENT, np.arange(40 << 20, dtype=np.uint32).view(np.uint8)[: 40 << 20], np.zeros(0, np.uint8), OTHER]
    manifest = WeightsManifest(version=1, checksum=checksum(parts), num_bytes=sum(len(part) for part in parts))
    assert np.array_equal(np.fromfile(NodeWeights("run", tmp_path).write(manifest, parts), np.uint8), np.concatenate(parts))


def test_a_file_that_is_not_what_was_published_is_refused(tmp_path: Path) -> None:
    path, manifest = tmp_path / "w", manifest_of(CONTENT, 4)
    path.write_bytes(CONTENT.tobytes())
    require_published(path, manifest)
    path.write_bytes(CONTENT[:-1].tobytes())
    with pytest.raises(WeightsMismatchError, match="version 4: 5000 bytes were published, .* has 4999"):
        require_published(path, manifest)
    path.write_bytes(OTHER.tobytes())
    with pytest.raises(WeightsMismatchError, match=f"version 4: published with checksum {manifest.checksum}"):
        require_published(path, manifest)


def test_old_weights_are_removed_but_not_from_under_who_has_mapped_them(tmp_path: Path) -> None:
    weights = NodeWeights("run", tmp_path)
    old, new = manifest_of(CONTENT, 1), manifest_of(OTHER, 2)
    mapped = np.memmap(weights.write(old, [CONTENT]), np.uint8, mode="r")
    weights.write(new, [OTHER])
    weights.keep_only(new)
    assert not weights.path(old).exists()
    assert weights.path(new).exists()
    assert checksum([np.asarray(mapped)]) == old.checksum


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
