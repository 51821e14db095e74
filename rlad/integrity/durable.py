"""Durable writes: content reaches the disk before its name does, and a failed write leaves the old file.

Temporary files are created exclusively, under random names, and symbolic links are never followed: a link planted in a
directory cannot redirect a write.
"""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rlad.errors import StorageError

_STORAGE_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO}
_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


@contextmanager
def storage_errors(path: Path | str) -> Iterator[None]:
    """Turn a full, read-only or failing disk into a `StorageError` that names the path. Other errors pass.

    Raises:
        StorageError: The disk refused the write.
    """
    try:
        yield
    except OSError as error:
        if isinstance(error, StorageError) or error.errno not in _STORAGE_ERRORS:
            raise
        raise StorageError(
            f"cannot write {path}: {os.strerror(error.errno)}. What was there before is unchanged; free space or "
            "repair the disk, and continue the run with --resume"
        ) from error


def write_atomically(path: Path, content: str | bytes) -> None:
    """Replace a file atomically and durably: neither a reader nor a crash sees a partial file.

    Raises:
        StorageError: The disk refused the write. The old file is unchanged.
    """
    data = content.encode() if isinstance(content, str) else content
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}")
    with storage_errors(path):
        try:
            with open(os.open(temporary, _NEW_FILE, 0o666), "wb") as file:  # noqa: PTH123 - a descriptor, not a path
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        sync_directory(path.parent)


def append_durably(path: Path, line: str) -> None:
    """Append a line to a file durably. A failed write leaves the file as it was.

    Raises:
        StorageError: The disk refused the write.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
    with storage_errors(path), open(os.open(path, flags, 0o666), "ab", buffering=0) as file:  # noqa: PTH123
        before, data = os.fstat(file.fileno()).st_size, memoryview(line.encode())
        try:
            while data:
                data = data[file.write(data) :]
            os.fsync(file.fileno())
        except OSError:
            os.ftruncate(file.fileno(), before)
            raise


def sync_file(path: Path) -> None:
    """Flush a file to disk.

    Raises:
        StorageError: The disk refused it.
    """
    with storage_errors(path):
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def sync_directory(path: Path) -> None:
    """Flush the names in a directory to disk. File systems that cannot do this are left alone."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


def move_into_place(source: Path, target: Path) -> None:
    """Rename a file or directory whose content is on disk already, and flush the new name."""
    with storage_errors(target):
        source.rename(target)
        sync_directory(target.parent)
