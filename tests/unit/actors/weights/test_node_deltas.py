"""Weight file of a node under deltas: applied in place, and replaced by a full version where they cannot be applied."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from actors.weights.node_file import DeltaChain, NodeWeights
from rlad.contracts import WeightsManifest
from rlad.errors import WeightsMismatchError
from rlad.weight_deltas.encoding import Section, encode_bucket
from rlad.weight_file import Bytes, buckets_of, checksum, digest

SIZE = 6000


@dataclass(kw_only=True)
class History:
    """Versions of a file of bytes: a full one, and a delta for each later one. Records what is fetched."""

    versions: list[Bytes]
    deltas: list[list[Bytes]] = field(default_factory=list)
    fetched: list[str] = field(default_factory=list)

    def append(self, *places: int) -> None:
        """Add a version in which the bytes at the given places differ."""
        old, new = self.versions[-1].copy(), self.versions[-1].copy()
        new[list(places)] += 1
        encoded = encode_bucket(0, [Section(tensor=0, offset=0, element_bytes=1, old=old, new=new)])
        assert encoded is not None
        self.versions.append(new)
        self.deltas.append([encoded.content])

    def write(self, weights: NodeWeights, version: int) -> Path:
        """Hold and release a version, as a worker does at an update."""
        held = weights.hold(
            self.manifest(version),
            [digest([self.versions[0]])],
            self._fetch,
            self._chain(version) if version else None,
        )
        held.release()
        return held.path

    def manifest(self, version: int) -> WeightsManifest:
        content = self.versions[version]
        return WeightsManifest(version=version, checksum=checksum([content]), num_bytes=len(content))

    def take_fetched(self) -> list[str]:
        fetched, self.fetched = self.fetched, []
        return fetched

    def _chain(self, version: int) -> DeltaChain:
        def fetch(first: int) -> Sequence[Sequence[Bytes]]:
            self.fetched += [f"delta {place}" for place in range(first + 1, version + 1)]
            return self.deltas[first:version]

        return DeltaChain(
            checksums=tuple(self.manifest(place).checksum for place in range(version + 1)),
            digests=tuple(digest(bucket) for bucket in buckets_of([self.versions[version]])),
            fetch=fetch,
        )

    def _fetch(self, indices: Sequence[int]) -> list[list[Bytes]]:
        self.fetched += ["full"] if indices else []
        return [[self.versions[0]] for _ in indices]


@pytest.fixture
def history() -> History:
    history = History(versions=[np.random.default_rng(0).integers(0, 256, SIZE, np.uint8)])
    for places in ((1, 5), (5, 4000), (0, SIZE - 1), (77,)):
        history.append(*places)
    return history


def is_version(history: History, path: Path, version: int) -> bool:
    return path.read_bytes() == history.versions[version].tobytes()


def test_each_delta_is_applied_to_the_file_in_place(tmp_path: Path, history: History) -> None:
    weights = NodeWeights("run", tmp_path)
    inode = history.write(weights, 0).stat().st_ino
    assert history.take_fetched() == ["full"]
    for version in (1, 2, 3):
        path = history.write(weights, version)
        assert history.take_fetched() == [f"delta {version}"]
        assert is_version(history, path, version)
        assert path.stat().st_ino == inode
        assert [file for file in path.parent.iterdir() if file.suffix != ".lock"] == [path]


def test_late_joiner_takes_the_full_version_and_all_deltas(tmp_path: Path, history: History) -> None:
    path = history.write(NodeWeights("run", tmp_path), 3)
    assert history.fetched == ["full", "delta 1", "delta 2", "delta 3"]
    assert is_version(history, path, 3)


def test_late_joiner_on_a_node_with_the_file_fetches_nothing(tmp_path: Path, history: History) -> None:
    history.write(NodeWeights("run", tmp_path), 2)
    history.take_fetched()
    assert is_version(history, history.write(NodeWeights("run", tmp_path), 2), 2)
    assert history.fetched == []


def test_missed_versions_are_made_up_by_their_deltas(tmp_path: Path, history: History) -> None:
    weights = NodeWeights("run", tmp_path)
    history.write(weights, 1)
    history.take_fetched()
    assert is_version(history, history.write(weights, 4), 4)
    assert history.fetched == ["delta 2", "delta 3", "delta 4"]


def test_file_of_a_version_that_no_delta_leads_from_is_replaced(tmp_path: Path, history: History) -> None:
    weights = NodeWeights("run", tmp_path)
    other = History(versions=[np.zeros(SIZE, np.uint8)])
    inode = other.write(weights, 0).stat().st_ino
    path = history.write(weights, 2)
    assert history.fetched == ["full", "delta 1", "delta 2"]
    assert is_version(history, path, 2)
    assert path.stat().st_ino == inode


def test_held_file_is_not_changed(tmp_path: Path, history: History) -> None:
    first, second = NodeWeights("run", tmp_path), NodeWeights("run", tmp_path)
    held = first.hold(history.manifest(0), [digest([history.versions[0]])], history._fetch)
    path = history.write(second, 1)
    assert is_version(history, held.path, 0)
    assert is_version(history, path, 1)
    held.release()
    second.remove_older(history.manifest(1))
    assert not held.path.exists()


def test_full_version_after_deltas_writes_only_buckets_that_differ(tmp_path: Path, history: History) -> None:
    weights = NodeWeights("run", tmp_path)
    for version in (0, 1, 2):
        history.write(weights, version)
    following = History(versions=[history.versions[2]])
    following.append(9)
    path = following.write(weights, 1)
    assert following.fetched == ["delta 1"], "the full version equals the file"
    assert is_version(following, path, 1)
    other = History(versions=[history.versions[0]])
    assert is_version(other, other.write(weights, 0), 0)
    assert other.fetched == ["full"]


def test_corrupt_delta_leaves_no_file_and_a_full_version_repairs_the_node(tmp_path: Path, history: History) -> None:
    weights = NodeWeights("run", tmp_path)
    history.write(weights, 0)
    good = history.deltas[0]
    broken = good[0].copy()
    broken[-1] ^= 1
    history.deltas[0] = [broken]
    for _ in range(2):
        with pytest.raises(WeightsMismatchError, match="is corrupt"):
            history.write(weights, 1)
        assert not weights.path(history.manifest(1)).exists()
    history.deltas[0] = good
    history.take_fetched()
    assert is_version(history, history.write(weights, 1), 1)
    assert history.fetched == ["full", "delta 1"]


KILLED = """
import os, signal, sys
from pathlib import Path
import numpy as np
from actors.weights.node_file import NodeWeights
from tests.unit.actors.weights.test_node_deltas import SIZE, History

class Kill(list):
    '''Encoded buckets, after which the process is killed.'''
    def __iter__(self):
        yield from list.__iter__(self)
        os.kill(os.getpid(), signal.SIGKILL)

history = History(versions=[np.random.default_rng(0).integers(0, 256, SIZE, np.uint8)])
history.append(1, 5)
history.append(5, 4000)
weights = NodeWeights("run", Path(sys.argv[1]))
history.write(weights, 0)
history.deltas[1] = Kill(history.deltas[1])
history.write(weights, 2)
"""


def test_application_of_deltas_that_was_killed_is_never_used(tmp_path: Path, history: History) -> None:
    """The process dies between two deltas, when the file holds a version that no worker asked for."""
    bystander = NodeWeights("run", tmp_path)
    died = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path)], env={**os.environ, "PYTHONPATH": str(Path.cwd())}, timeout=120
    )
    assert died.returncode == -signal.SIGKILL
    [left] = [file for file in (tmp_path / "rlad-run").iterdir() if file.suffix != ".lock"]
    assert left.suffix == ".unfinished"
    assert is_version(history, left, 1)
    path = history.write(bystander, 2)
    assert history.fetched == ["full", "delta 1", "delta 2"]
    assert is_version(history, path, 2)
