"""Compressed files, opened as the bytes that they contain: gzip, bzip2, xz, Zstandard, and zip archives of one file."""

import bz2
import gzip
import lzma
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, cast

import pyarrow as pa

from job.data.formats import COMPRESSIONS
from job.errors import UsageError, first_line

TORN = (EOFError, gzip.BadGzipFile, zlib.error, lzma.LZMAError, zipfile.BadZipFile)
"""What the standard library raises while it reads a compressed file that is truncated or damaged."""


def is_compressed(path: str) -> bool:
    """Whether the ending of a name says that the file is compressed."""
    return Path(path).suffix.lower() in COMPRESSIONS


def open_bytes(path: str) -> BinaryIO:
    """Open a local file; a compressed one as what it contains. Reading raises ``TORN`` or OSError.

    Raises:
        UsageError: it is a zip archive of several files, or an encrypted one.
    """
    match Path(path).suffix.lower():
        case ".gz":
            return cast(BinaryIO, gzip.open(path, "rb"))
        case ".bz2":
            return cast(BinaryIO, bz2.open(path, "rb"))
        case ".xz":
            return cast(BinaryIO, lzma.open(path, "rb"))
        case ".zst":
            return cast(BinaryIO, pa.input_stream(path, compression="zstd"))
        case ".zip":
            return _open_archived(path)
        case _:
            return Path(path).open("rb")


def _open_archived(path: str) -> BinaryIO:
    archive = zipfile.ZipFile(path)
    members = [entry for entry in archive.infolist() if not entry.is_dir() and "__MACOSX" not in entry.filename]
    if len(members) != 1:
        names = ", ".join(entry.filename for entry in members[:3])
        raise UsageError(f"{path} is an archive of {len(members)} files ({names}, ...). Unpack it, and give the files.")
    if members[0].flag_bits & 1:
        raise UsageError(f"{path} is encrypted. Unpack it, and give the file.")
    return cast(BinaryIO, archive.open(members[0]))


@contextmanager
def unpacking(path: str) -> Iterator[None]:
    """Name a compressed file that cannot be read to its end.

    Raises:
        UsageError: the file is truncated or damaged.
    """
    try:
        yield
    except (*TORN, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:  # of the system, not of the contents
            raise
        raise damaged(path, error) from None


def damaged(path: str, error: BaseException) -> UsageError:
    """Return the error for a compressed file that cannot be read to its end."""
    return UsageError(f"{path}: the file is truncated or damaged: {first_line(error)}.")
