"""A file object over an object in a bucket, which fetches the ranges that are read."""

import errno
import io
from typing import Any, BinaryIO, cast

from job.output.store.bucket import Bucket, Changed

TAIL_BYTES = 64 * 1024
"""Fetched when the object is opened: enough for the footer of a part, so that counting its rows is one request."""

BLOCK_BYTES = 4 << 20
"""Fetched at once: a part is read column by column, in pieces that are much smaller."""


def open_object(bucket: Bucket, key: str) -> BinaryIO:
    """Open an object for reading. If it is replaced while it is read, reading fails.

    Raises:
        FileNotFoundError: the object does not exist.
    """
    return cast(BinaryIO, io.BufferedReader(_Ranges(bucket, key), BLOCK_BYTES))


class _Ranges(io.RawIOBase):
    """Reads ranges of one version of an object."""

    def __init__(self, bucket: Bucket, key: str) -> None:
        self._bucket, self._key, self._position = bucket, key, 0
        self._tail, found = bucket.get(key, -TAIL_BYTES)
        self._num_bytes, self._etag = found.num_bytes, found.etag

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._num_bytes}[whence]
        self._position = max(0, base + offset)
        return self._position

    def readinto(self, buffer: Any) -> int:
        start, stop = self._position, min(self._position + len(buffer), self._num_bytes)
        if start >= stop:
            return 0
        data = self._read(start, stop)
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)

    def _read(self, start: int, stop: int) -> bytes:
        tail_start = self._num_bytes - len(self._tail)
        if start >= tail_start:
            return self._tail[start - tail_start : stop - tail_start]
        try:
            return self._bucket.get(self._key, start, stop, etag=self._etag)[0]
        except Changed:
            address = f"s3://{self._bucket.name}/{self._key}"
            raise OSError(errno.EIO, "it was replaced while it was read", address) from None
