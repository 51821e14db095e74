"""Weight file of a node: written once per version, in place if the file is not held, and only where it changed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from actors.weights.node_file import HeldFile, NodeWeights, require_shared_memory
from rlad.contracts import WeightsManifest
from rlad.errors import EngineError
from rlad.weight_file import BUCKET_BYTES, buckets_of, checksum, digest

CONTENT = np.arange(5000, dtype=np.uint8)
OTHER = CONTENT[::-1].copy()


class Published:
    """Version of the weights, with a record of the fetched buckets."""

    def __init__(self, content: np.ndarray, version: int) -> None:
        self.content = content
        self.manifest = WeightsManifest(version=version, checksum=checksum([content]), num_bytes=len(content))
        self.fetched: list[int] = []
        self._buckets = list(buckets_of([content]))

    def hold(self, weights: NodeWeights) -> HeldFile:
        return weights.hold(self.manifest, [digest(bucket) for bucket in self._buckets], self._fetch)

    def write(self, weights: NodeWeights) -> Path:
        """Hold and release the file, as a worker does at each update."""
        held = self.hold(weights)
        held.release()
        return held.path

    def _fetch(self, indices: Sequence[int]) -> list[list[np.ndarray]]:
        self.fetched += indices
        return [self._buckets[index] for index in indices]


def files_of(tmp_path: Path) -> list[Path]:
    return [path for path in (tmp_path / "rlad-run").iterdir() if path.suffix != ".lock"]


@pytest.fixture
def hold_folder(tmp_path: Path) -> Iterator[Callable[[str], subprocess.Popen[str]]]:
    """Return a function that starts another process which uses the folder of a run."""
    processes: list[subprocess.Popen[str]] = []

    def start(run_id: str) -> subprocess.Popen[str]:
        program = (
            "import sys; from pathlib import Path; from actors.weights.node_file import NodeWeights; "
            "weights = NodeWeights(sys.argv[1], Path(sys.argv[2])); print('in', flush=True); sys.stdin.read()"
        )
        process = subprocess.Popen(
            [sys.executable, "-c", program, run_id, str(tmp_path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        processes.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "in\n"
        return process

    yield start
    for process in processes:
        process.kill()
        process.communicate()


def test_file_is_written_once_for_all_workers_of_a_node(tmp_path: Path) -> None:
    first, second = NodeWeights("run", tmp_path), NodeWeights("run", tmp_path)
    published = Published(CONTENT, 1)
    path = published.write(first)
    inode = path.stat().st_ino
    assert published.write(second) == path
    assert (path.stat().st_ino, published.fetched) == (inode, [0])
    assert path.read_bytes() == CONTENT.tobytes()


def test_concurrent_workers_write_one_complete_file(tmp_path: Path) -> None:
    published = Published(np.random.default_rng(0).integers(0, 256, 5_000_000, np.uint8), 3)
    threads = [threading.Thread(target=published.write, args=(NodeWeights("run", tmp_path),)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    [file] = files_of(tmp_path)
    assert checksum([np.fromfile(file, np.uint8)]) == published.manifest.checksum
    assert published.fetched == [0]


def test_next_version_overwrites_the_changed_buckets_in_place(tmp_path: Path) -> None:
    """The content has three buckets; the last is short."""
    weights, content = (
        NodeWeights("run", tmp_path),
        np.random.default_rng(0).integers(0, 256, 2 * BUCKET_BYTES + 77, np.uint8),
    )
    first = Published(content.copy(), 1)
    inode = first.write(weights).stat().st_ino
    assert first.fetched == [0, 1, 2]
    content[BUCKET_BYTES + 5] ^= 1
    content[-1] ^= 1
    for version, changed in ((2, [1, 2]), (3, [])):  # version 3 equals version 2
        published = Published(content.copy(), version)
        path = published.write(weights)
        assert published.fetched == changed
        assert np.array_equal(np.fromfile(path, np.uint8), content)
        assert (path.stat().st_ino, files_of(tmp_path)) == (inode, [path])


def test_worker_that_never_held_the_last_version_writes_all_buckets(tmp_path: Path) -> None:
    content = np.random.default_rng(0).integers(0, 256, BUCKET_BYTES + 77, np.uint8)
    Published(content, 1).write(NodeWeights("run", tmp_path))
    published = Published(np.append(content[:-1], content[-1] ^ 1), 2)
    path = published.write(NodeWeights("run", tmp_path))
    assert published.fetched == [0, 1]
    assert path.read_bytes() == published.content.tobytes()


def test_held_file_is_not_overwritten(tmp_path: Path) -> None:
    first, second = NodeWeights("run", tmp_path), NodeWeights("run", tmp_path)
    old, new, third = Published(CONTENT, 1), Published(OTHER, 2), Published(CONTENT + 1, 3)
    held = old.hold(first)
    path = new.write(second)
    assert held.path.read_bytes() == CONTENT.tobytes()
    assert path.read_bytes() == OTHER.tobytes()
    held.release()
    assert third.write(second).read_bytes() == third.content.tobytes()
    second.remove_older(third.manifest)
    assert files_of(tmp_path) == [second.path(third.manifest)]


def test_weights_of_another_size_are_written_to_a_new_file(tmp_path: Path) -> None:
    weights = NodeWeights("run", tmp_path)
    Published(CONTENT, 1).write(weights)
    assert Published(CONTENT[:-8], 2).write(weights).read_bytes() == CONTENT[:-8].tobytes()


def test_failed_fetch_leaves_the_last_version_unchanged(tmp_path: Path) -> None:
    weights, old, new = NodeWeights("run", tmp_path), Published(CONTENT, 1), Published(OTHER, 2)

    def lost(indices: Sequence[int]) -> list[list[np.ndarray]]:
        raise EngineError("the publisher was lost")

    path = old.write(weights)
    with pytest.raises(EngineError, match="the publisher was lost"):
        weights.hold(new.manifest, [digest([OTHER])], lost)
    assert files_of(tmp_path) == [path]
    assert path.read_bytes() == CONTENT.tobytes()
    assert new.write(weights).read_bytes() == OTHER.tobytes()


def test_unfinished_file_of_a_killed_worker_is_never_used(tmp_path: Path) -> None:
    weights, old, new = NodeWeights("run", tmp_path), Published(CONTENT, 1), Published(OTHER, 2)
    half_written = weights.path(new.manifest).with_suffix(".unfinished")
    half_written.write_bytes(OTHER[:100].tobytes())
    assert new.write(weights).read_bytes() == OTHER.tobytes()
    half_written.write_bytes(OTHER[:100].tobytes())
    assert old.write(weights).read_bytes() == CONTENT.tobytes()
    weights.remove_older(old.manifest)
    assert files_of(tmp_path) == [weights.path(old.manifest)]


def test_removed_file_is_written_again(tmp_path: Path) -> None:
    weights, published = NodeWeights("run", tmp_path), Published(CONTENT, 1)
    held = published.hold(weights)
    held.path.write_bytes(OTHER.tobytes())
    held.remove()
    held.release()
    assert published.write(weights).read_bytes() == CONTENT.tobytes()


def test_removing_old_files_keeps_held_files_and_existing_mappings(tmp_path: Path) -> None:
    weights = NodeWeights("run", tmp_path)
    old, new = Published(CONTENT, 1), Published(OTHER, 2)
    held = old.hold(weights)
    mapped = np.memmap(held.path, np.uint8, mode="r")
    new.write(weights)
    weights.remove_older(new.manifest)
    assert len(files_of(tmp_path)) == 2, "the old file is held"
    held.release()
    weights.remove_older(old.manifest)
    assert len(files_of(tmp_path)) == 2, "no file is older"
    weights.remove_older(new.manifest)
    assert files_of(tmp_path) == [weights.path(new.manifest)]
    assert checksum([np.asarray(mapped)]) == old.manifest.checksum


def test_last_worker_to_close_removes_the_folder(tmp_path: Path) -> None:
    first, second = NodeWeights("run", tmp_path), NodeWeights("run", tmp_path)
    first.close()
    assert (tmp_path / "rlad-run").is_dir()
    second.close()
    assert not (tmp_path / "rlad-run").exists()


def test_folder_of_a_killed_run_is_removed_by_the_next_run(tmp_path: Path, hold_folder) -> None:
    dead = hold_folder("dead")
    dead.send_signal(signal.SIGKILL)
    dead.wait()
    assert (tmp_path / "rlad-dead").is_dir()
    NodeWeights("next", tmp_path)
    assert not (tmp_path / "rlad-dead").exists()


def test_folder_of_a_live_run_is_kept(tmp_path: Path, hold_folder) -> None:
    hold_folder("living")
    NodeWeights("next", tmp_path).close()
    assert (tmp_path / "rlad-living").is_dir()


def test_other_files_and_folders_are_kept(tmp_path: Path) -> None:
    (tmp_path / "rlad-notes").mkdir()
    (tmp_path / "rlad-file").write_text("kept")
    NodeWeights("run", tmp_path).close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["rlad-file", "rlad-notes"]


def test_run_id_with_a_path_separator_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="one path component"):
        NodeWeights("../elsewhere", tmp_path)


def test_only_the_owner_can_read_the_weights(tmp_path: Path) -> None:
    NodeWeights("run", tmp_path)
    assert (tmp_path / "rlad-run").stat().st_mode & 0o077 == 0


def test_too_small_shared_memory_is_refused_before_the_first_update(tmp_path: Path) -> None:
    stats = os.statvfs(tmp_path)
    size = stats.f_blocks * stats.f_frsize
    require_shared_memory(1000, "run", tmp_path)
    with pytest.raises(EngineError, match=r"weight updates need .* GiB of shared memory .*docker run --shm-size=\d+g"):
        require_shared_memory(size + 1, "run", tmp_path)
    # A file of the run is overwritten in place. It is sparse here.
    folder = tmp_path / "rlad-run"
    folder.mkdir()
    with (folder / "v3-aa.safetensors").open("wb") as file:
        os.truncate(file.fileno(), size + 1)
    require_shared_memory(size + 1, "run", tmp_path)


def test_folder_can_be_entered_while_others_leave_and_remove_it(tmp_path: Path) -> None:
    """Workers of one run come and go on a node, and each leaves a folder that no other one uses."""
    failures: list[BaseException] = []

    def come_and_go() -> None:
        try:
            for _ in range(150):
                weights = NodeWeights("run", tmp_path)
                assert (tmp_path / "rlad-run" / "alive.lock").is_file()
                weights.close()
        except BaseException as error:  # noqa: BLE001 - reported by the test
            failures.append(error)

    workers = [threading.Thread(target=come_and_go) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert failures == []
    assert list(tmp_path.iterdir()) == []


def test_planted_link_in_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "rlad-run").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(EngineError, match="is no directory or belongs to another user"):
        NodeWeights("run", tmp_path)
    assert list((tmp_path / "elsewhere").iterdir()) == []
