"""Opening of prompt files: compression by content, and refusal of files that are not the data themselves."""

from __future__ import annotations

import bz2
import codecs
import gzip
import io
import lzma
from pathlib import Path, PurePath
from typing import BinaryIO, cast

from rlad.errors import DataError

_ENDINGS = {".gz": "gzip", ".bz2": "bz2", ".xz": "xz", ".zst": "zstd", ".zstd": "zstd", ".lz4": "lz4"}
_MAGIC = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bz2",
    b"\xfd7zXZ\x00": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"\x04\x22\x4d\x18": "lz4",
}


def head_of(path: Path, size: int = 512) -> bytes:
    """Return the first bytes of a file as it is stored."""
    with path.open("rb") as file:
        return file.read(size)


def compression_of(head: bytes) -> str | None:
    """Return the compression whose magic bytes a file starts with."""
    return next((name for magic, name in _MAGIC.items() if head.startswith(magic)), None)


def data_ending(path: PurePath) -> str:
    """Return the lower-case ending of a file name without the ending of its compression."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    while suffixes and suffixes[-1] in _ENDINGS:
        suffixes.pop()
    return suffixes[-1] if suffixes else ""


def open_decompressed(path: Path) -> BinaryIO:
    """Open a file for reading. The magic bytes decide the compression, not the name."""
    compression = compression_of(head_of(path))
    if compression == "gzip":
        return cast(BinaryIO, gzip.open(path))
    if compression == "bz2":
        return cast(BinaryIO, bz2.open(path))
    if compression == "xz":
        return cast(BinaryIO, lzma.open(path))
    if compression is not None:
        import pyarrow  # Imported here because the import takes 0.3 s that other files do not need.

        stream = pyarrow.CompressedInputStream(pyarrow.OSFile(str(path)), compression)
        return cast(BinaryIO, io.BufferedReader(stream))
    return path.open("rb")


def require_data(path: Path) -> None:
    """Refuse files that stand for data or contain it in a form that is not read.

    Raises:
        DataError: The file is a Git LFS or git-annex pointer, a web page, an archive or a spreadsheet.
    """
    head = head_of(path)
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith(b"version https://git-lfs"):
        raise DataError(
            f"{path} is a Git LFS pointer, not the data; fetch the data with `git lfs pull`, or download the file again"
        )
    if text.startswith(b"# xet version"):
        raise DataError(f"{path} is a Xet pointer, not the data; download the file again with the hub's client")
    if head.startswith(b"/annex/objects/"):
        raise DataError(f"{path} is a git-annex pointer, not the data; fetch the data with `git annex get`")
    if text.startswith((b"<!doctype html", b"<html")):
        raise DataError(f"{path} is a web page, not the data; download the raw file (on a hub: `resolve`, not `blob`)")
    if text.startswith(b"<?xml"):
        raise DataError(f"{path} is XML, such as the error message of a server, not the data; download the file again")
    if head.startswith((b"PK\x03\x04", b"\xd0\xcf\x11\xe0")):
        raise DataError(f"{path} is a zip archive or spreadsheet; unpack it, or save it as .jsonl, .csv or .parquet")
    if head[257:262] == b"ustar" or ".tar" in (suffix.lower() for suffix in path.suffixes):
        raise DataError(f"{path} is a tar archive; unpack it and give the folder or a glob as `path`")


def encoding_of(head: bytes, encoding: str) -> str:
    """Return the encoding of a text file: UTF-16 or UTF-32 if its first bytes show it, otherwise `encoding`."""
    if head.startswith(b"\xff\xfe\x00\x00") or head.startswith(b"\x00\x00\xfe\xff"):
        return "utf-32"
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16"
    if head.startswith(codecs.BOM_UTF8):
        return "utf-8-sig" if encoding == "utf-8" else encoding
    zeros = [byte == 0 for byte in head[:4]]
    wide: dict[tuple[bool, ...], str] = {
        (False, True, False, True): "utf-16-le",
        (True, False, True, False): "utf-16-be",
        (False, True, True, True): "utf-32-le",
        (True, True, True, False): "utf-32-be",
    }
    return wide.get(tuple(zeros), encoding)
