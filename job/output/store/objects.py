"""A run directory in an object store that speaks S3 and offers conditional PUTs. Nothing else accesses its objects.

- A name is created by ``If-None-Match: *``: of several workers that try, one succeeds.
- A lease is touched, and taken over, by ``If-Match`` on the version that was seen.
- The clock is the server's, as the headers ``Date`` and ``Last-Modified`` show it.
- A part is written to a temporary local file, then sent in one request: there are no drafts.
- What is appended to is a series of small objects (``segments``).
"""

import contextlib
import errno
import io
import os
import secrets
import tempfile
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from typing import BinaryIO

from job.errors import UsageError
from job.output.store.bucket import ABSENT, Bucket, Changed, Put
from job.output.store.names import is_log
from job.output.store.ranges import open_object
from job.output.store.segments import Segment, SegmentAppender, delete_segments, read_segments, segments_of
from job.output.store.store import Appender, Entry, Stamp

PROBE = ".probe-"

ADVICE = "Use a directory on a shared disk, and publish it with 'job publish', or copy it afterwards."


class ObjectStore:
    """The objects whose keys begin with a prefix."""

    pause_secs = 30.0
    """Each request costs money, and some time."""

    def __init__(self, bucket: Bucket, prefix: str) -> None:
        """Use this place in a bucket.

        Args:
            prefix: without a slash at its end.
        """
        self._bucket, self._prefix = bucket, prefix
        self._is_prepared = self._is_known = False
        """Whether the run directory exists, as far as prefixes do: something is in it, or this process prepares it."""
        self._own: dict[str, tuple[bytes, str]] = {}
        """What this process has created and may touch: name to contents and version."""
        self._ends: dict[str, SegmentAppender] = {}

    def describe(self, name: str = "") -> str:
        """Return an address."""
        return f"s3://{self._bucket.name}/{self._key(name)}"

    def prepare(self, directories: Sequence[str]) -> None:
        """Check with a probe that the store obeys conditions. There are no directories to create.

        Raises:
            UsageError: it ignores conditions, as many stores do, so that two workers would overwrite each other.
        """
        if self._is_prepared:
            return
        probe = self._key(f"{PROBE}{secrets.token_hex(6)}")
        try:
            first = self._bucket.put(probe, b"1", over=ABSENT)
            self._check_refused(probe, ABSENT)
            second = self._replace(probe, first)
            self._check_refused(probe, first.etag)
            self._bucket.delete(probe)
            self._check_refused(probe, second.etag)
        finally:
            with contextlib.suppress(OSError):
                self._bucket.delete(probe)
        self._is_prepared = self._is_known = True

    def _replace(self, probe: str, seen: Put) -> Put:
        for self._bucket.quotes_versions in (True, False):
            with contextlib.suppress(Changed):
                return self._bucket.put(probe, b"2", over=seen.etag)
        raise UsageError(f"--output {self.describe()}: this store does not understand If-Match. {ADVICE}")

    def _check_refused(self, probe: str, over: str) -> None:
        try:
            self._bucket.put(probe, b"3", over=over)
        except Changed:
            return
        header = "If-None-Match" if over == ABSENT else "If-Match"
        raise UsageError(
            f"--output {self.describe()}: this store ignores {header}, so two workers could overwrite each other's "
            f"work. {ADVICE}"
        )

    def list(self, directory: str = "") -> Sequence[Entry]:
        """Return the objects at one level, from one listing, with their versions. A series counts as one object."""
        prefix = f"{self._key(directory)}/"
        objects, folders = self._bucket.list(prefix)
        entries = [Entry(each.key.removeprefix(prefix), each.etag) for each in objects]
        entries += [Entry(folder.removeprefix(prefix).rstrip("/"), "") for folder in folders]
        # The key that is the prefix itself is an empty object that some tools write for a directory.
        found = [entry for entry in entries if entry.name and not entry.name.startswith(PROBE)]
        if not found and not self._exists():
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), self.describe())
        return found

    def _exists(self) -> bool:
        self._is_known = self._is_known or any(self._bucket.list(f"{self._key()}/", delimiter="", limit=1))
        return self._is_known

    def exists(self, name: str) -> bool:
        """Whether there is an object of this name."""
        if is_log(name):
            return any(self._bucket.list(f"{self._key(name)}/", limit=1))
        try:
            self._bucket.head(self._key(name))
            return True
        except FileNotFoundError:
            return False

    def stamp(self, name: str) -> Stamp:
        """Return what the store knows about an object."""
        if is_log(name):
            return _stamp(self._segments(name))
        found = self._bucket.head(self._key(name))
        return Stamp(found.etag, found.num_bytes, found.written)

    def read(self, name: str, start: int = 0) -> bytes:
        """Return the contents of an object from a position on."""
        return self.look(name, start)[0]

    def look(self, name: str, start: int = 0) -> tuple[bytes, Stamp]:
        """Return the contents and the stamp of an object."""
        if not is_log(name):
            data, found = self._bucket.get(self._key(name), start)
            return data, Stamp(found.etag, found.num_bytes, found.written)
        segments = self._segments(name)
        stamp = _stamp(segments)
        start = max(0, stamp.num_bytes + start) if start < 0 else start
        data = read_segments(self._bucket, segments, start)
        # More may have been appended since the listing. A position beyond the end says nothing about the size.
        num_bytes = start + len(data) if data else stamp.num_bytes
        return data, Stamp(stamp.identity, num_bytes, stamp.written)

    def open(self, name: str) -> BinaryIO:
        """Open an object. Ranges are fetched as they are read, all of the same version."""
        return io.BytesIO(self.read(name)) if is_log(name) else open_object(self._bucket, self._key(name))

    def create_exclusively(self, name: str, data: bytes, *, durable: bool = True) -> bool:
        """Write an object if there is none."""
        try:
            written = self._bucket.put(self._key(name), data, over=ABSENT)
        except Changed:
            return False
        self._own[name] = data, written.etag
        return True

    def replace(self, name: str, data: bytes) -> None:
        """Write an object."""
        self._bucket.put(self._key(name), data)

    @contextlib.contextmanager
    def replacing(self, name: str, data: bytes) -> Iterator[None]:
        """Write an object when the block ends."""
        yield
        self.replace(name, data)

    def replace_if_same(self, name: str, seen: tuple[bytes, Stamp], data: bytes) -> bool:
        """Write an object if it is still the version that was seen."""
        try:
            written = self._bucket.put(self._key(name), data, over=seen[1].identity)
        except Changed:
            return False
        self._own[name] = data, written.etag
        return True

    @contextlib.contextmanager
    def writing(self, name: str, over: Stamp | None = None) -> Iterator[BinaryIO]:
        """Write a temporary local file and send it."""
        with tempfile.TemporaryFile() as file:
            yield file
            try:
                self._bucket.put(self._key(name), file, over=ABSENT if over is None else over.identity)
            except Changed:
                raise FileNotFoundError(
                    errno.ENOENT, "another process has written it in the meantime", self.describe(name)
                ) from None

    @contextlib.contextmanager
    def append(self, name: str) -> Iterator[Appender]:
        """Append to a series of objects."""
        assert is_log(name), f"{name} is not appended to"
        yield self._ends.setdefault(name, SegmentAppender(self._bucket, self._key(name)))

    def touch(self, name: str, *, create: bool = False) -> float:
        """Write an object's contents again. If it is no longer the one that this process created, it counts as missing.

        Without ``create`` this is a heartbeat, which is not repeated while the store does not answer: the next one is
        not far.
        """
        if create:
            return self._bucket.put(self._key(name), b"").time
        data, etag = self._own.get(name) or self._version(name)
        for _ in range(2):
            try:
                written = self._bucket.put(self._key(name), data, over=etag, patient=False)
                self._own[name] = data, written.etag
                return written.time
            except Changed:  # by another worker; or by our last touch, if its answer was lost
                found, etag = self._version(name)
                if found != data:
                    break
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), self.describe(name))

    def _version(self, name: str) -> tuple[bytes, str]:
        data, found = self._bucket.get(self._key(name))
        return data, found.etag

    def now(self) -> float | None:
        """Return the server's time."""
        try:
            return self._bucket.now()
        except OSError:
            return None

    def delete(self, name: str) -> None:
        """Remove an object, or a series."""
        self._own.pop(name, None)
        if is_log(name):
            self._ends.pop(name, None)
            delete_segments(self._bucket, self._key(name))
        else:
            self._bucket.delete(self._key(name))

    def discard(self, directory: str, pattern: str, *, min_age_secs: float = 0.0) -> None:
        """Remove probes that killed processes have left. There are no drafts."""
        if directory or not fnmatchcase(PROBE, pattern):
            return
        with contextlib.suppress(OSError):
            now = self._bucket.now()
            for probe in self._bucket.list(self._key(PROBE))[0]:
                if now - probe.written >= min_age_secs:
                    self._bucket.delete(probe.key)

    def _segments(self, name: str) -> Sequence[Segment]:
        if not (found := segments_of(self._bucket, self._key(name))):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), self.describe(name))
        return found

    def _key(self, name: str = "") -> str:
        return f"{self._prefix}/{name}" if name else self._prefix


def _stamp(segments: Sequence[Segment]) -> Stamp:
    return Stamp(segments[0].series, segments[-1].stop, max(segment.written for segment in segments))
