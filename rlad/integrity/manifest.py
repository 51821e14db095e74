"""SHA-256 manifests: the checksum of every file of a directory, written last and verified on load.

A manifest is a file `SHA256SUMS` in the format of the command `sha256sum`, so `sha256sum -c SHA256SUMS` verifies it
too. It lists every file below the directory. A file that is missing, changed or not listed is an error, and so is a
symbolic link. Files are hashed on several threads, large ones first.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Collection, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from rlad.errors import CorruptFileError
from rlad.integrity.durable import sync_directory, sync_file, write_atomically

MANIFEST = "SHA256SUMS"
_LINE = re.compile(r"([0-9a-f]{64})  ([^\n]+)")
_MOST_THREADS = 8


def files_below(directory: Path) -> list[str]:
    """Return the relative paths of all files below a directory except its manifest, in order.

    Raises:
        CorruptFileError: The directory contains a symbolic link, or something that is no file.
    """
    require_no_links(directory)
    names = []
    for path in directory.rglob("*"):
        if path.is_dir():
            continue
        if not path.is_file():
            raise CorruptFileError(f"{path} is neither a file nor a directory; remove it")
        name = path.relative_to(directory).as_posix()
        if name != MANIFEST:
            names.append(name)
    return sorted(names)


def require_no_links(directory: Path, *, except_below: Collection[Path] = ()) -> None:
    """Refuse symbolic links below a directory: they could redirect reads and writes to other places.

    Args:
        directory: The directory.
        except_below: Folders in it that may contain links, but must not be links themselves.

    Raises:
        CorruptFileError: There is one.
    """
    for folder, folders, files in os.walk(directory):
        for name in (*folders, *files):
            path = Path(folder, name)
            if path.is_symlink():
                raise CorruptFileError(
                    f"{path} is a symbolic link to {path.readlink()}; links are not followed here. Put the content in "
                    "its place. To keep a run on another disk, choose another --run-dir"
                )
        folders[:] = [name for name in folders if Path(folder, name) not in except_below]


def digests_of(directory: Path, names: Iterable[str]) -> dict[str, str]:
    """Return the SHA-256 of files by relative path. Hashes on several threads.

    Raises:
        CorruptFileError: A file is missing or cannot be read.
    """
    largest_first = sorted(names, key=lambda name: -_size(directory / name))
    with ThreadPoolExecutor(min(_MOST_THREADS, len(os.sched_getaffinity(0)))) as threads:
        digests = threads.map(lambda name: sha256_of(directory / name), largest_first)
        return dict(zip(largest_first, digests, strict=True))


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file, hexadecimal. Reads it in chunks.

    Raises:
        CorruptFileError: It cannot be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise CorruptFileError(f"{path} cannot be read: {error.strerror}") from error


def write_manifest(directory: Path, digests: Mapping[str, str] | None = None) -> None:
    """Write the manifest of a directory, after its files are on disk.

    Args:
        directory: Directory with all its files.
        digests: SHA-256 by relative path, of files that are on disk already; None flushes and hashes all files.

    Raises:
        StorageError: The disk refused it.
    """
    if digests is None:
        names = files_below(directory)
        for name in names:
            sync_file(directory / name)
        digests = digests_of(directory, names)
    for folder in {(directory / name).parent for name in digests}:
        sync_directory(folder)
    text = "".join(f"{digest}  {name}\n" for name, digest in sorted(digests.items()))
    write_atomically(directory / MANIFEST, text)


def read_manifest(directory: Path) -> dict[str, str]:
    """Return the SHA-256 of every file by relative path, as the manifest has them.

    Raises:
        CorruptFileError: There is no manifest, or it is damaged.
    """
    path = directory / MANIFEST
    if path.is_symlink() or not path.is_file():
        raise CorruptFileError(f"{directory} has no {MANIFEST}: it is incomplete, or was written by another program")
    try:
        lines = path.read_bytes().decode().split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise CorruptFileError(f"{path} is damaged: {error}") from error
    found = [_LINE.fullmatch(line) for line in lines[:-1]]
    if lines[-1] or not all(found) or len({match[2] for match in found if match}) != len(found):
        raise CorruptFileError(f"{path} is damaged: expected lines with a SHA-256 and a path, each path once")
    return {match[2]: match[1] for match in found if match}


def verify(directory: Path, *, remedy: str, rank: int = 0, ranks: int = 1, is_closed: bool = True) -> None:
    """Compare a directory with its manifest.

    Args:
        directory: Directory with a manifest.
        remedy: What to do if it is damaged, for the error message.
        rank: Number of this process among those that share the work.
        ranks: Number of those processes. Each hashes a part of the files.
        is_closed: Whether the manifest must list every file of the directory.

    Raises:
        CorruptFileError: The manifest or a file is missing or damaged, or there is a file that it does not list.
    """
    try:
        expected, present = read_manifest(directory), files_below(directory)
        if missing := sorted(expected.keys() - set(present)):
            raise CorruptFileError(f"{directory / missing[0]} is missing, but {MANIFEST} lists it")
        if is_closed and (unknown := sorted(set(present) - expected.keys())):
            raise CorruptFileError(f"{directory / unknown[0]} is not listed in {MANIFEST}")
        for name, digest in sorted(digests_of(directory, sorted(expected)[rank::ranks]).items()):
            if digest != expected[name]:
                raise CorruptFileError(
                    f"{directory / name} is damaged: expected SHA-256 {expected[name]}; got {digest}"
                )
    except CorruptFileError as error:
        raise CorruptFileError(f"{error}. {remedy}") from error


def verify_if_sealed(directory: Path, *, remedy: str) -> None:
    """Verify a directory that has a manifest. One without, such as a model of another program, passes.

    Raises:
        CorruptFileError: See `verify`.
    """
    if (directory / MANIFEST).is_file():
        verify(directory, remedy=remedy)


def add_to_manifest(directory: Path, name: str) -> None:
    """Record the present content of one more file, or of a replaced one, in a manifest.

    Raises:
        CorruptFileError: There is no manifest, or it is damaged.
    """
    digests = read_manifest(directory)
    sync_file(directory / name)
    write_manifest(directory, {**digests, name: sha256_of(directory / name)})


def verify_checksum(path: Path, *, remedy: str) -> None:
    """Compare a single file with the SHA-256 next to it.

    Raises:
        CorruptFileError: The file or its checksum is missing or damaged.
    """
    beside = checksum_path(path)
    if path.is_symlink() or not beside.is_file():
        raise CorruptFileError(f"{path} is a link or has no {beside.name}. {remedy}")
    if beside.read_bytes() != f"{sha256_of(path)}  {path.name}\n".encode():
        raise CorruptFileError(f"{path} is damaged: it does not match {beside.name}. {remedy}")


def checksum_path(path: Path) -> Path:
    """Return the path of the SHA-256 of a single file, next to it and in the format of `sha256sum`."""
    return path.with_name(f"{path.name}.sha256")


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError as error:
        raise CorruptFileError(f"{path} cannot be read: {error.strerror}") from error
