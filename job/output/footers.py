"""What the footers of many parts say together, quickly enough for a person who waits.

Whole footers, as pyarrow reads them, take some six times as long. Here only the tail of a file is read, in threads,
within a budget of time; and what was read once is not read again as long as the part is the same file.
"""

import json
import math
import os
import time
from collections import Counter
from collections.abc import Mapping

from job.output.counts import METADATA_KEY, Counts
from job.output.many_files import read_many
from job.output.paths import RunPaths

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
        self._seen: dict[int, tuple[int, bytes | None]] = {}
        """Shard to the inode of its part and the counts in it; None if they cannot be read."""

    def look(self, paths: RunPaths, parts: Mapping[int, int], *, budget_secs: float) -> None:
        """Read the parts that are new, as many as the time allows.

        Args:
            parts: shard to the inode of its part.
        """
        for shard_idx in [idx for idx, (inode, _) in self._seen.items() if parts.get(idx) != inode]:
            self._add(self._seen.pop(shard_idx)[1], -1)
        new = [shard_idx for shard_idx in sorted(parts) if shard_idx not in self._seen]
        until = time.monotonic() + budget_secs
        for shard_idx, content in read_many(lambda idx: read_counts(str(paths.part(idx))), new, until=until):
            self._seen[shard_idx] = parts[shard_idx], content
            self._add(content, 1)

    @property
    def num_read(self) -> int:
        """Parts that are in the sums."""
        return len(self._seen) - self.num_unreadable

    @property
    def num_unreadable(self) -> int:
        """Files that are no part that this version wrote, or are damaged."""
        return len(self.unreadable)

    @property
    def unreadable(self) -> list[int]:
        """The shards of those files."""
        return [shard_idx for shard_idx, (_, content) in self._seen.items() if content is None]

    def _add(self, content: bytes | None, sign: int) -> None:
        if content is None:
            return
        values = json.loads(content)
        self.counts.num_rows += sign * values["num_rows"]
        self.counts.num_prompt_tokens += sign * values["num_prompt_tokens"]
        self.counts.num_completion_tokens += sign * values["num_completion_tokens"]
        self.counts.errors.update(Counter({kind: sign * number for kind, number in values["errors"].items()}))


def count_all(paths: RunPaths) -> Counts:
    """Return the sums of a run every shard of which has its part.

    Raises:
        JobError: a part cannot be read.
    """
    footers = FooterCounts()
    footers.look(paths, dict.fromkeys(range(paths.num_shards), 0), budget_secs=math.inf)
    for shard_idx in footers.unreadable:
        footers.counts.add_part(paths.part(shard_idx))  # says what is wrong with it
    return footers.counts


def read_counts(path: str) -> bytes | None:
    """Return the JSON text of the counts in a part's footer; None if the file has none."""
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


def _find_counts(footer: bytes) -> bytes | None:
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
    content = footer[start : start + length]
    return content if _are_counts(content) else None


def _are_counts(content: bytes) -> bool:
    try:
        values = json.loads(content)
        numbers = [values[name] for name in ("num_rows", "num_prompt_tokens", "num_completion_tokens")]
        return all(isinstance(number, int) for number in [*numbers, *values["errors"].values()])
    except (ValueError, LookupError, TypeError, AttributeError):
        return False
