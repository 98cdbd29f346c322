"""What the footers of many parts say together, quickly enough for a person who waits.

Whole footers, as pyarrow reads them, take some six times as long. Here only the tail of a file is read, in threads,
within a budget of time; and what was read once is not read again as long as the part is the same file.
"""

import os
import time
from collections.abc import Iterable, Mapping

from job.output.parts.counts import METADATA_KEY, Counts
from job.output.store.many_files import read_many
from job.output.store.paths import RunPaths

TAIL_BYTES = 8 * 1024
"""Holds the metadata of nearly every part, which end the footer; else there is a second read."""

MAGIC = b"PAR1"

KEY_BYTES = bytes([0x18, len(METADATA_KEY)]) + METADATA_KEY + b"\x18"
"""An entry of the footer's key-value metadata in Thrift's compact protocol: header and length of the key, the key,
header of the value. (github.com/apache/thrift/blob/master/doc/specs/thrift-compact-protocol.md)"""


class FooterCounts:
    """Sums of what parts contain. Remembers which files it has read."""

    def __init__(self) -> None:
        """Nothing is read yet."""
        self.counts = Counts()
        self._seen: dict[int, tuple[int, Counts | None]] = {}
        """Shard to the inode of its part and the counts in it; None if they cannot be read."""

    def look(self, paths: RunPaths, parts: Mapping[int, int], *, budget_secs: float) -> None:
        """Read the parts that are new, as many as the time allows.

        Args:
            parts: shard to the inode of its part.
        """
        for shard_idx in [idx for idx, (inode, _) in self._seen.items() if parts.get(idx) != inode]:
            if (gone := self._seen.pop(shard_idx)[1]) is not None:
                self.counts.exclude(gone)
        new = [shard_idx for shard_idx in sorted(parts) if shard_idx not in self._seen]
        until = time.monotonic() + budget_secs
        for shard_idx, counts in read_many(lambda idx: read_counts(str(paths.part(idx))), new, until=until):
            self._seen[shard_idx] = parts[shard_idx], counts
            if counts is not None:
                self.counts.include(counts)

    @property
    def num_read(self) -> int:
        """Parts that are in the sums."""
        return len(self._seen) - self.num_unreadable

    @property
    def num_unreadable(self) -> int:
        """Files that are no part that this version wrote, or are damaged."""
        return sum(counts is None for _, counts in self._seen.values())


def count_parts(paths: RunPaths, shards: Iterable[int]) -> dict[int, Counts]:
    """Return what the parts of these shards contain.

    Raises:
        JobError: a part cannot be read; the message says what is wrong with it.
    """
    found = read_many(lambda idx: read_counts(str(paths.part(idx))), list(shards))
    return {idx: Counts.of_part(paths.part(idx)) if counts is None else counts for idx, counts in found}


def count_all(paths: RunPaths) -> Counts:
    """Return the sums of a run every shard of which has its part.

    Raises:
        JobError: a part cannot be read.
    """
    total = Counts()
    for counts in count_parts(paths, range(paths.num_shards)).values():
        total.include(counts)
    return total


def read_counts(path: str) -> Counts | None:
    """Return the counts in a part's footer; None if the file has none."""
    try:
        fd = os.open(path, os.O_RDONLY)
        try:
            size = os.fstat(fd).st_size
            tail = _read_tail(fd, size, TAIL_BYTES)
            footer_size = int.from_bytes(tail[-8:-4], "little") + 8
            if tail[-4:] != MAGIC or footer_size > size:
                return None
            if footer_size > len(tail) and KEY_BYTES not in tail:
                tail = _read_tail(fd, size, footer_size)
        finally:
            os.close(fd)
    except OSError:
        return None
    return _find_counts(tail[-footer_size:])


def _read_tail(fd: int, size: int, num_bytes: int) -> bytes:
    return os.pread(fd, num_bytes, max(0, size - num_bytes))


def _find_counts(footer: bytes) -> Counts | None:
    """Cut the counts out of a footer: the last entry, since the metadata comes behind everything of the columns."""
    at = footer.rfind(KEY_BYTES)
    if at < 0:
        return None
    start = at + len(KEY_BYTES)
    length, shift = 0, 0
    while start < len(footer):  # a number in groups of seven bits, the lowest first
        byte = footer[start]
        length |= (byte & 0x7F) << shift
        start, shift = start + 1, shift + 7
        if byte < 0x80:
            break
    try:
        return Counts.from_json(footer[start : start + length])
    except ValueError:
        return None
