"""The keys of a shard's rows: what each row asks, in 16 bytes (``job.data.row_keys``), so that later runs can find it.

Each finished shard has one object of them beside its part. It depends on the dataset alone, not on what came out.
"""

import contextlib
from collections.abc import Iterator

import numpy as np
import pyarrow as pa

from job.output.parts.checksum import with_checksum, without_checksum
from job.output.store.directory import RunDirectory
from job.output.store.names import KEYS
from job.records import KEY_BYTES

ROW_KEY = "row_key"
"""The column of journals that has a row's key."""

FIELD = pa.field(ROW_KEY, pa.binary(KEY_BYTES))

UNKNOWN = bytes(KEY_BYTES)
"""In place of the key of a row that cannot be read, or was finished by a version that did not write keys."""


class RowKeys:
    """The keys of the rows of one shard that is open."""

    def __init__(self, rows: range, known: bytes | None = None) -> None:
        """Take what is known, which is 16 bytes for each row, in their order."""
        self._rows = rows
        self._is_known = known is not None
        """Also if all rows that were looked at cannot be read."""
        self._keys = bytearray(KEY_BYTES * len(rows)) if known is None else bytearray(known)

    def of(self, row_idx: int) -> bytes | None:
        """Return the key of a row; None if it is unknown."""
        start = KEY_BYTES * (row_idx - self._rows.start)
        key = bytes(self._keys[start : start + KEY_BYTES])
        return None if key == UNKNOWN else key

    def set(self, row_idx: int, key: bytes | None) -> None:
        """Take the key of a row; None if it cannot be read."""
        self._is_known = True
        if key is not None:
            start = KEY_BYTES * (row_idx - self._rows.start)
            self._keys[start : start + KEY_BYTES] = key

    def set_all(self, rows: np.ndarray, keys: np.ndarray) -> None:
        """Take the keys of many rows: [N] int64 indices, [N, 16] uint8 keys."""
        self._is_known = True
        np.frombuffer(self._keys, np.uint8).reshape(-1, KEY_BYTES)[rows - self._rows.start] = keys

    def settle(self, directory: RunDirectory, shard_idx: int) -> None:
        """Write the object of the shard, unless no row of it was looked at."""
        with self.settling(directory, shard_idx):
            pass

    @contextlib.contextmanager
    def settling(self, directory: RunDirectory, shard_idx: int) -> Iterator[None]:
        """Write a draft of the object, which gets its name when the block ends without an exception."""
        if not self._is_known:
            yield
            return
        directory.store.prepare([KEYS])
        with directory.store.replacing(directory.names.keys(shard_idx), with_checksum(bytes(self._keys))):
            yield


def read_keys(directory: RunDirectory, shard_idx: int, num_rows: int) -> bytes | None:
    """Return the keys of a finished shard, one after the other; None if there are none, or they cannot be read, are
    damaged or not of that many rows."""
    try:
        content = directory.store.read(directory.names.keys(shard_idx))
    except OSError:
        return None
    keys = without_checksum(content)
    return keys if keys is not None and len(keys) == KEY_BYTES * num_rows else None
