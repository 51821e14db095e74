"""What of a directory goes to a cluster with a job: chosen, measured and refused before anything is uploaded, then packed."""

from __future__ import annotations

import os
import zipfile
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from pathspec import GitIgnoreSpec

from rlad.errors import JobError

IGNORE_FILE = ".rladignore"
"""Beside every `.gitignore`, and with its syntax: what git keeps but no job needs."""

# Ray's dashboard takes a request of 100 MiB at most.
MAX_BYTES = 96 * 2**20
MAX_FILES = 20_000

# Never part of a job, in whatever folder.
_ALWAYS_IGNORED = (".git", ".venv/", "venv/", "__pycache__/")
_LARGEST_NAMED = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkingDirectory:
    """The files of a directory that travel with a job.

    Attributes:
        root: absolute.
        sizes: bytes by path below `root`, with slashes, in order.
    """

    root: Path
    sizes: Mapping[str, int]

    @property
    def num_bytes(self) -> int:
        return sum(self.sizes.values())

    def holds(self, path: str) -> bool:
        """Whether a file, or anything of a folder, travels. `path` is relative to the directory."""
        name = PurePosixPath(os.path.normpath(path)).as_posix()
        return name == "." or name in self.sizes or any(each.startswith(f"{name}/") for each in self.sizes)

    def pack(self, target: Path) -> None:
        """Write the files as a zip: the same files give the same bytes, so that Ray uploads them once."""
        with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
            for name in self.sizes:
                path = self.root / name
                entry = zipfile.ZipInfo(name)  # dated 1980, whenever the file was touched
                entry.compress_type = zipfile.ZIP_DEFLATED
                entry.external_attr = (path.stat().st_mode & 0o777) << 16
                archive.writestr(entry, path.read_bytes())


def absolute(path: Path) -> Path:
    """A path from the root, links left as they are: on the nodes they may lead elsewhere."""
    return Path(os.path.normpath(path.expanduser().absolute()))


def read_working_directory(root: Path, *, without: Sequence[Path] = ()) -> WorkingDirectory:
    """Choose what travels: all files but those that a `.gitignore` or `.rladignore` names, in whatever folder it is, and folders of git and Python's own.
    Links to files travel as the files; links to folders do not.

    Args:
        without: folders that stay behind besides, for example the run's own.

    Raises:
        JobError: no such directory, nothing in it, or more than a job may bring, with the largest folders.
    """
    root = absolute(root)
    if not root.is_dir():
        raise JobError(f"the working directory {root} is no directory: give one with --working-dir")
    rules = _Rules(left_out=frozenset(absolute(path) for path in without))
    sizes: dict[str, int] = {}
    for path in _files(root, root, rules):
        sizes[path.relative_to(root).as_posix()] = path.stat().st_size
        if len(sizes) > MAX_FILES:
            crowded = _folders_by(sizes, count=True)
            raise JobError(
                f"the working directory {root} holds more than {MAX_FILES:,} files, most of them in {crowded}; {_advice(root)}"
            )
    if not sizes:
        raise JobError(
            f"the working directory {root} holds nothing that travels with a job: give another with --working-dir"
        )
    if (total := sum(sizes.values())) > MAX_BYTES:
        largest = _folders_by(sizes, count=False)
        raise JobError(
            f"the working directory {root} is {_mib(total)}, and a job brings at most {_mib(MAX_BYTES)}: {largest}; {_advice(root)}"
        )
    return WorkingDirectory(root=root, sizes=sizes)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Rules:
    """Ignore rules that hold in a folder: its own after those of the folders above, each with the folder that its patterns start from."""

    left_out: frozenset[Path]
    specs: tuple[tuple[Path, GitIgnoreSpec], ...] = field(default=())

    def within(self, folder: Path) -> _Rules:
        lines = [] if self.specs else list(_ALWAYS_IGNORED)
        for name in (".gitignore", IGNORE_FILE):
            if (folder / name).is_file():
                lines += (folder / name).read_text().splitlines()
        return (
            _Rules(left_out=self.left_out, specs=(*self.specs, (folder, GitIgnoreSpec.from_lines(lines))))
            if lines
            else self
        )

    def ignore(self, path: Path, *, is_folder: bool) -> bool:
        """As git decides: the last pattern that matches, of the deepest file that has one."""
        if path in self.left_out:
            return True
        for folder, spec in reversed(self.specs):
            decision = spec.check_file(path.relative_to(folder).as_posix() + ("/" if is_folder else "")).include
            if decision is not None:
                return decision
        return False


def _files(folder: Path, root: Path, rules: _Rules) -> Iterator[Path]:
    here = rules.within(folder)
    for path in sorted(folder.iterdir()):
        if path.is_dir():
            if not path.is_symlink() and not here.ignore(path, is_folder=True):
                yield from _files(path, root, here)
        elif path.is_file() and not here.ignore(path, is_folder=False):
            yield path


def _folders_by(sizes: Mapping[str, int], *, count: bool) -> str:
    """The folders that make a directory large, each as deep as it is the only reason."""
    weights: Counter[str] = Counter()
    for name, size in sizes.items():
        for folder in (*PurePosixPath(name).parents, PurePosixPath(name)):
            weights[folder.as_posix()] += 1 if count else size
    children: dict[str, list[str]] = defaultdict(list)
    for name in weights:
        if name != ".":
            children[PurePosixPath(name).parent.as_posix()].append(name)

    def described(name: str) -> str:
        while deeper := [each for each in children[name] if children[each] and weights[each] >= 0.9 * weights[name]]:
            name = deeper[0]
        return f"{name}{'/' if children[name] else ''} {f'{weights[name]:,} files' if count else _mib(weights[name])}"

    heaviest = sorted(
        (each for each in children["."] if weights[each] >= 0.01 * weights["."]), key=weights.__getitem__, reverse=True
    )
    return ", ".join(map(described, heaviest[:_LARGEST_NAMED]))


def _advice(root: Path) -> str:
    return (
        f"name what the job does not need in {root / IGNORE_FILE}; models and data belong on storage that all nodes see"
    )


def _mib(num_bytes: int) -> str:
    return f"{num_bytes / 2**20:.1f} MiB"
