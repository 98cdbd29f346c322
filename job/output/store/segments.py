"""Objects that are appended to, in a store that can only replace objects: each is a series of segments.

The segments of ``journal/00042.w.arrows`` are ``journal/00042.w.arrows/000000000000000-6f1c``, and so on: the number is
the position of a segment's first byte, what follows it the series that the segment belongs to. Only the last one is
replaced, by a longer one, until it is large enough; so small appends do not leave thousands of objects, and large ones
are not sent again and again.
"""

import re
import secrets
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from job.output.store.bucket import Bucket

FULL_BYTES = 256 * 1024
"""A segment of this size is left as it is."""

NUM_THREADS = 16

NAME = re.compile(r"(\d{15})-([0-9a-f]+)", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """A part of an object that is appended to."""

    key: str
    start: int
    series: str
    num_bytes: int
    written: float

    @property
    def stop(self) -> int:
        """The position after the last byte."""
        return self.start + self.num_bytes


def segments_of(bucket: Bucket, key: str) -> Sequence[Segment]:
    """Return the segments of an object, up to the first that is missing. Without any, the object does not exist.

    What lies beyond a gap was written by a worker that did not know yet that its journal had been deleted.
    """
    objects, _ = bucket.list(f"{key}/")
    found: list[Segment] = []
    for each in objects:  # in the order of their names
        match = NAME.fullmatch(each.key.rpartition("/")[2])
        if match is None or int(match[1]) != (found[-1].stop if found else 0):
            continue
        if found and match[2] != found[0].series:
            continue
        found.append(
            Segment(key=each.key, start=int(match[1]), series=match[2], num_bytes=each.num_bytes, written=each.written)
        )
    return found


def read_segments(bucket: Bucket, segments: Sequence[Segment], start: int) -> bytes:
    """Return the bytes from a position on, which may be more than were listed.

    Raises:
        FileNotFoundError: the object has been deleted in the meantime.
    """
    wanted = [segment for segment in segments if segment.stop > start]

    def read(segment: Segment) -> bytes:
        return bucket.get(segment.key, max(0, start - segment.start))[0]

    if len(wanted) < 2:
        return b"".join(map(read, wanted))
    with ThreadPoolExecutor(NUM_THREADS) as pool:
        return b"".join(pool.map(read, wanted))


def delete_segments(bucket: Bucket, key: str) -> None:
    """Remove an object with whatever lies beyond a gap."""
    objects, _ = bucket.list(f"{key}/")
    with ThreadPoolExecutor(NUM_THREADS) as pool:
        list(pool.map(bucket.delete, (each.key for each in objects)))


class SegmentAppender:
    """Appends to one object. It is kept between appends, since it knows the last segment."""

    def __init__(self, bucket: Bucket, key: str) -> None:
        """Append to this object, which need not exist yet."""
        self._bucket, self._key = bucket, key
        self._series = ""
        self._start = 0
        """The position of the last segment."""
        self._last = b""
        """Its contents."""

    def append(self, data: bytes, *, durable: bool = True) -> None:
        """Write the last segment again, with more at its end. If that fails, the next attempt replaces it."""
        if not self._series:
            found = segments_of(self._bucket, self._key)
            self._series, self._start = (found[0].series, found[-1].stop) if found else (secrets.token_hex(4), 0)
        last = self._last + data
        self._bucket.put(f"{self._key}/{self._start:015d}-{self._series}", last)
        if len(last) >= FULL_BYTES:
            self._start, self._last = self._start + len(last), b""
        else:
            self._last = last

    def close(self) -> None:
        """Do nothing: what was appended is in the store."""
