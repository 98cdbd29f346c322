"""What of a run can be published: its finished parts, each checked and hashed once, until it is replaced.

Parts go out as they are. Those of older versions may name the path of the model in their metadata, and are copied
without it.
"""

import contextlib
import hashlib
import io
import math
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, BinaryIO, cast

import pyarrow as pa
import pyarrow.parquet as pq

from job.errors import JobError
from job.launch.activity import doing
from job.output.looking.footers import NUM_THREADS, FooterCounts
from job.output.looking.found import FoundRun
from job.output.looking.part_check import PartProblem, check_part
from job.output.parts.counts import Counts
from job.output.publishing.publication import PublicPart
from job.output.store.store import Stamp
from job.wording import public_name

BLOCK_BYTES = 1 << 20
MODEL = b"job.model"


class PublicParts:
    """The finished parts of a run."""

    def __init__(self, run: FoundRun, known: Mapping[str, PublicPart]) -> None:
        """Start with what was published before (name to contents): it is not read again unless it was replaced."""
        self._run, self._names = run, run.directory.names
        self._known = dict(known)
        self._stamps: dict[int, Stamp] = {}
        self._footers = FooterCounts()
        self._like: pa.Schema | None = None
        self.are_complete = False
        """Whether every shard has its part, and none is to be retried."""

    def look(self) -> None:
        """See which parts there are now. A part with rows to be retried counts until the new one replaces it."""
        directory = self._run.directory
        marked = directory.shards_to_retry()  # first: a worker that replaces a part removes its marker afterwards
        shards = sorted(directory.written_shards())
        with ThreadPoolExecutor(NUM_THREADS) as pool:
            stamps = pool.map(self._stamp, shards)
            self._stamps = {idx: stamp for idx, stamp in zip(shards, stamps, strict=True) if stamp is not None}
        self.are_complete = len(self._stamps) == self._run.plan.num_shards and not marked
        identities = {shard_idx: str(stamp) for shard_idx, stamp in self._stamps.items()}
        self._footers.look(directory, identities, budget_secs=math.inf)
        for shard_idx in self._footers.unreadable:
            self.of(shard_idx)  # says why

    @property
    def shards(self) -> Sequence[int]:
        """The shards that have a part, in their order."""
        return list(self._stamps)

    def of(self, shard_idx: int) -> PublicPart:
        """Return the contents of a part, which are read if they are not known.

        Raises:
            JobError: the part is damaged.
        """
        if (part := self.known(shard_idx)) is None:
            doing("checking parts", self._names.part(shard_idx))
            part = self._known[self._names.part(shard_idx)] = self._read(shard_idx)
        return part

    def known(self, shard_idx: int) -> PublicPart | None:
        """Return the contents of a part if they need not be read."""
        part = self._known.get(self._names.part(shard_idx))
        return part if part is not None and part.stamp == self._stamps[shard_idx] else None

    def counts(self, shards: Iterable[int]) -> Counts:
        """Return the sums over these parts."""
        return Counts.total(counts for shard_idx in shards if (counts := self._footers.of(shard_idx)) is not None)

    @contextlib.contextmanager
    def open(self, shard_idx: int) -> Iterator[Path | BinaryIO]:
        """Give what is to be uploaded. It stays what it is, even if another process replaces the part meanwhile."""
        with (
            self._run.directory.store.open(self._names.part(shard_idx)) as file,
            _without_path(file) as public,
        ):
            yield _source(public)

    def _read(self, shard_idx: int) -> PublicPart:
        directory, name = self._run.directory, self._names.part(shard_idx)
        try:
            _, schema = check_part(self._run, shard_idx, self._like)
        except PartProblem as problem:
            reason = str(problem).rstrip(".")
            raise JobError(
                f"{directory.store.describe(name)} {reason}. It was not published. Remove it and run the same job run "
                "command: its rows will be recomputed."
            ) from None
        self._like = self._like or schema
        with directory.store.open(name) as file, _without_path(file) as public:
            num_bytes, digests = digests_of(public)
        return PublicPart(stamp=self._stamps[shard_idx], num_bytes=num_bytes, digests=digests)

    def _stamp(self, shard_idx: int) -> Stamp | None:
        with contextlib.suppress(FileNotFoundError):
            return self._run.directory.store.stamp(self._names.part(shard_idx))
        return None


def digests_of(file: IO[bytes]) -> tuple[int, tuple[str, str]]:
    """Return the size of a file and its digests: as a large file of a repository, and as a small one."""
    num_bytes = file.seek(0, io.SEEK_END)
    file.seek(0)
    sha256, git = hashlib.sha256(), hashlib.sha1(f"blob {num_bytes}\0".encode(), usedforsecurity=False)
    while block := file.read(BLOCK_BYTES):
        sha256.update(block)
        git.update(block)
    file.seek(0)
    return num_bytes, (f"sha256:{sha256.hexdigest()}", f"git:{git.hexdigest()}")


def _source(file: BinaryIO) -> Path | BinaryIO:
    """Return an open file in a form that the client of the Hub takes.

    It uploads paths faster, but opens them several times, to hash and to send them. The path of the descriptor leads to
    the same contents each time.
    """
    with contextlib.suppress(OSError, AttributeError):  # no file of this machine
        return Path(f"/proc/self/fd/{file.fileno()}")
    return file if isinstance(file, io.BufferedIOBase) else io.BufferedReader(cast("io.RawIOBase", file))


@contextlib.contextmanager
def _without_path(file: BinaryIO) -> Iterator[BinaryIO]:
    """Give a part whose metadata names the model without its path: this one, or a copy.

    The same version of Arrow makes the same copy.
    """
    part = pq.ParquetFile(file)
    metadata = dict(part.metadata.metadata or {})
    metadata.pop(b"ARROW:schema", None)
    model = metadata.get(MODEL, b"").decode()
    if public_name(model) == model:
        yield file
        return
    metadata[MODEL] = public_name(model).encode()
    schema = part.schema_arrow.with_metadata(metadata)
    compression = part.metadata.row_group(0).column(0).compression if part.num_row_groups else "NONE"
    with tempfile.TemporaryFile() as copy:
        with pq.ParquetWriter(copy, schema, compression=compression, write_page_checksum=True) as writer:
            for idx in range(part.num_row_groups):
                writer.write_table(part.read_row_group(idx).replace_schema_metadata(metadata))
        copy.flush()
        copy.seek(0)
        yield copy
