"""Working directory of a job: selection of the files to upload, size limits, and packing."""

from __future__ import annotations

import os
import zipfile
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from pathspec import GitIgnoreSpec

from pipelines.jobs.credential_files import credential_in, is_credential_path
from rlad.errors import JobError

IGNORE_FILE = ".rladignore"
"""Ignore file with the syntax of `.gitignore`, for files that git tracks but no job needs. Valid in every folder."""

# Ray's dashboard accepts requests of at most 100 MiB.
MAX_BYTES = 96 * 2**20
MAX_FILES = 20_000

# Never uploaded, in any folder.
_ALWAYS_IGNORED = (".git", ".venv/", "venv/", "__pycache__/")
_MAX_NAMED_FOLDERS = 4
_MAX_NAMED_FILES = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkingDirectory:
    """Files of a directory that are uploaded with a job.

    Attributes:
        root: Absolute path of the directory.
        sizes: Size in bytes of each file, by POSIX path relative to `root`, sorted.
        left_out: Files and folders that no ignore file names and that are not uploaded: they look like credentials, or
            are links to files outside of `root`.
    """

    root: Path
    sizes: Mapping[str, int]
    left_out: tuple[str, ...] = ()

    @property
    def num_bytes(self) -> int:
        return sum(self.sizes.values())

    def holds(self, path: str) -> bool:
        """Return True if a file, or any file of a folder, is uploaded. `path` is relative to the directory."""
        name = PurePosixPath(os.path.normpath(path)).as_posix()
        return name == "." or name in self.sizes or any(file.startswith(f"{name}/") for file in self.sizes)

    def pack(self, target: Path) -> None:
        """Write the files to a zip. Equal files give equal bytes, so Ray uploads them once.

        Raises:
            JobError: A file became a link to a file outside of the directory since it was selected.
        """
        with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
            for name in self.sizes:
                path = self.root / name
                if not _is_inside(path, self.root):
                    raise JobError(f"{path} was replaced by a link that leads out of {self.root}: remove the link")
                entry = zipfile.ZipInfo(name)  # dated 1980, independent of the file's time
                entry.compress_type = zipfile.ZIP_DEFLATED
                entry.external_attr = (path.stat().st_mode & 0o777) << 16
                archive.writestr(entry, path.read_bytes())


def absolute(path: Path) -> Path:
    """Return the absolute path without resolving links, which may have other targets on the nodes."""
    return Path(os.path.normpath(path.expanduser().absolute()))


def read_working_directory(root: Path, *, without: Sequence[Path] = ()) -> WorkingDirectory:
    """Select the files to upload: all files, except those of `.gitignore` and `.rladignore` files in any folder.

    Folders of git and of Python environments are never uploaded, and what looks like a credential by its name neither.
    Links to files of the directory are uploaded as files; other links are not followed.

    Args:
        root: Directory.
        without: Further folders to leave out, for example the run directory.

    Raises:
        JobError: The directory does not exist, contains no files to upload, exceeds the limits of a job, or a file
            holds a credential.
    """
    root = absolute(root)
    if not root.is_dir():
        raise JobError(f"working directory {root} does not exist or is not a directory: set --working-dir")
    rules, left_out = _Rules(left_out=frozenset(absolute(path) for path in without)), list[str]()
    sizes: dict[str, int] = {}
    for path in _files(root, root, rules, left_out):
        sizes[path.relative_to(root).as_posix()] = path.stat().st_size
        if len(sizes) > MAX_FILES:
            crowded = _folders_by(sizes, count=True)
            raise JobError(
                f"working directory {root} has more than {MAX_FILES:,} files, most of them in {crowded}; "
                f"{_advice(root)}"
            )
    if not sizes:
        raise JobError(f"working directory {root} contains no files to upload: set another --working-dir")
    if (total := sum(sizes.values())) > MAX_BYTES:
        largest = _folders_by(sizes, count=False)
        raise JobError(
            f"working directory {root} has {_mib(total)}, the limit is {_mib(MAX_BYTES)}; largest folders: {largest}; "
            f"{_advice(root)}"
        )
    _require_no_credentials(root, sizes)
    return WorkingDirectory(root=root, sizes=sizes, left_out=tuple(sorted(left_out)))


def _require_no_credentials(root: Path, names: Iterable[str]) -> None:
    """Refuse files that hold a credential.

    Raises:
        JobError: There is one.
    """
    found = {name: kind for name in names if (kind := credential_in(root / name)) is not None}
    if found:
        named = ", ".join(f"{name} ({kind})" for name, kind in list(found.items())[:_MAX_NAMED_FILES])
        raise JobError(
            f"files of the working directory {root} hold credentials, which every user of the cluster could read: "
            f"{named}. Remove the credentials: jobs read them from the environment of the nodes, from files on the "
            f"nodes or from Kubernetes secrets. List files that the job does not need in {root / IGNORE_FILE}"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Rules:
    """Ignore rules of a folder: those of its parent folders, then its own, each with its base folder."""

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
        """Decide as git does: the last matching pattern of the deepest ignore file wins."""
        if path in self.left_out:
            return True
        for folder, spec in reversed(self.specs):
            decision = spec.check_file(path.relative_to(folder).as_posix() + ("/" if is_folder else "")).include
            if decision is not None:
                return decision
        return False


def _files(folder: Path, root: Path, rules: _Rules, left_out: list[str]) -> Iterator[Path]:
    """Yield the files to upload. Adds credentials and links that lead out of the directory to `left_out`."""
    here = rules.within(folder)
    for path in sorted(folder.iterdir()):
        is_folder, name = path.is_dir(), path.relative_to(root).as_posix()
        if here.ignore(path, is_folder=is_folder) or (is_folder and path.is_symlink()):
            continue
        if _is_credential(path, root) or not _is_inside(path, root):
            left_out.append(f"{name}/" if is_folder else name)
        elif is_folder:
            yield from _files(path, root, here, left_out)
        elif path.is_file():
            yield path


def _is_credential(path: Path, root: Path) -> bool:
    """Return whether a file or folder, or the file that a link leads to, looks like a credential by its name."""
    names = [path.relative_to(root).as_posix()]
    if path.is_symlink() and _is_inside(path, root):
        names.append(os.path.relpath(os.path.realpath(path), os.path.realpath(root)))
    return any(is_credential_path(name, is_folder=path.is_dir()) for name in names)


def _is_inside(path: Path, root: Path) -> bool:
    """Return whether a path is in the directory after its link is followed. Links to folders are not followed."""
    return not path.is_symlink() or Path(os.path.realpath(path)).is_relative_to(os.path.realpath(root))


def _folders_by(sizes: Mapping[str, int], *, count: bool) -> str:
    """Describe the largest folders. A folder is replaced by its subfolder if that has 90% of its weight."""
    weights: Counter[str] = Counter()
    for name, size in sizes.items():
        for folder in (*PurePosixPath(name).parents, PurePosixPath(name)):
            weights[folder.as_posix()] += 1 if count else size
    children: dict[str, list[str]] = defaultdict(list)
    for name in weights:
        if name != ".":
            children[PurePosixPath(name).parent.as_posix()].append(name)

    def described(name: str) -> str:
        while deeper := [
            child for child in children[name] if children[child] and weights[child] >= 0.9 * weights[name]
        ]:
            name = deeper[0]
        return f"{name}{'/' if children[name] else ''} {f'{weights[name]:,} files' if count else _mib(weights[name])}"

    heaviest = sorted(
        (child for child in children["."] if weights[child] >= 0.01 * weights["."]),
        key=weights.__getitem__,
        reverse=True,
    )
    return ", ".join(map(described, heaviest[:_MAX_NAMED_FOLDERS]))


def _advice(root: Path) -> str:
    return (
        f"list files that the job does not need in {root / IGNORE_FILE}; "
        "keep models and data on storage that all nodes mount"
    )


def _mib(num_bytes: int) -> str:
    return f"{num_bytes / 2**20:.1f} MiB"
