"""Parts under retry: a marker next to a part says which of its rows are to be recomputed, and how. The others stay."""

import json
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from job.errors import JobError, UsageError, first_line
from job.output.parts.counts import Counts
from job.output.parts.part_schema import Columns
from job.output.parts.redone import Redone, described, from_metadata
from job.output.parts.rows import from_batch
from job.output.parts.writers import UNKNOWN
from job.output.parts.writers import from_metadata as writers_from
from job.output.store.directory import RunDirectory
from job.output.store.store import Store
from job.records import CUT_REASONS, Completion, RowError, SampleKey


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """Which rows of a part are to be recomputed: those of which any of this is true."""

    kinds: tuple[str, ...] | None = None
    """Those with errors of these kinds; of any kind if it is empty. None: errors stay."""
    cut: bool = False
    """Those that were cut by the limit of their length."""
    unparsed: bool = False
    """Those that do not meet their schema, regex or grammar."""
    changes: Mapping[str, Any] = field(default_factory=dict)
    """Sampling options for these rows, in place of the run's."""
    part: Mapping[str, Any] | None = None
    """The counts of the part that was marked, as JSON values. None: the footer says how many rows are meant."""
    rows: Counts | None = None
    """The counts of these rows, if there is ``part``."""
    retry_id: str = ""
    """The identity of the retry, in hexadecimal; empty: an older version has marked the part."""

    @property
    def is_plain(self) -> bool:
        """Whether it means nothing but errors, as the markers of older versions do."""
        return not (self.cut or self.unparsed or self.changes)

    def joined(self, earlier: Self) -> Self:
        """Return a mark of the rows that this one or an earlier one means."""
        kinds: tuple[str, ...] | None = ()
        if None in (self.kinds, earlier.kinds):
            kinds = earlier.kinds if self.kinds is None else self.kinds
        elif self.kinds and earlier.kinds:
            kinds = tuple(sorted({*self.kinds, *earlier.kinds}))
        # What has been recomputed since the earlier one is in logs of its own.
        return replace(
            self,
            retry_id=earlier.retry_id,
            kinds=kinds,
            cut=self.cut or earlier.cut,
            unparsed=self.unparsed or earlier.unparsed,
        )

    @property
    def columns(self) -> list[str]:
        """The columns of a part that ``are_meant`` needs."""
        return ["error", *(["finish_reason"] if self.cut else []), *(["parse_ok"] if self.unparsed else [])]

    def are_meant(self, batch: pa.RecordBatch | pa.Table) -> Any:
        """Return which rows of a part are meant: [rows] bool."""
        meant = pa.array([False] * batch.num_rows, pa.bool_())
        if self.kinds is not None:
            errors = [text and RowError.parse(text) for text in batch["error"].to_pylist()]
            meant = pa.array([bool(e) and (not self.kinds or e.kind in self.kinds) for e in errors], pa.bool_())
        if self.cut:
            meant = pc.or_(meant, pc.fill_null(pc.is_in(batch["finish_reason"], pa.array(CUT_REASONS)), False))
        if self.unparsed:
            meant = pc.or_(meant, pc.fill_null(pc.invert(batch["parse_ok"]), False))
        return meant

    def left(self, counts: Counts) -> Counts:
        """Return the counts of a part without these rows."""
        if self.part is None or self.rows is None:
            return counts if self.kinds is None else counts.without_errors(self.kinds)
        # Otherwise a worker that was killed before it could remove the marker has replaced the part.
        return counts.without(self.rows) if counts.to_dict() == self.part else counts

    def to_json(self) -> bytes:
        """Return the contents of a marker. Older versions read it if they can do what it asks for."""
        if self.is_plain:
            return json.dumps({"kinds": self.kinds, **({"retry_id": self.retry_id} if self.retry_id else {})}).encode()
        content = {"errors": self.kinds, "cut": self.cut, "unparsed": self.unparsed, "changes": self.changes}
        rows = None if self.rows is None else self.rows.to_dict()
        return json.dumps(content | {"part": self.part, "rows": rows, "retry_id": self.retry_id}).encode()

    @classmethod
    def from_json(cls, content: bytes) -> "Mark":
        """Read what ``to_json`` wrote.

        Raises:
            ValueError, KeyError, TypeError, AttributeError: it is something else.
        """
        values = json.loads(content)
        if "kinds" in values:
            return cls(kinds=tuple(values["kinds"]), retry_id=values.get("retry_id", ""))
        rows = None if values["rows"] is None else Counts.from_json(json.dumps(values["rows"]).encode())
        return cls(
            kinds=None if values["errors"] is None else tuple(values["errors"]),
            cut=values["cut"],
            unparsed=values["unparsed"],
            changes=dict(values["changes"]),
            part=values["part"],
            retry_id=values.get("retry_id", ""),
            rows=rows,
        )


def read_mark(directory: RunDirectory, shard_idx: int) -> Mark | None:
    """Return what a shard's marker says; None if there is none.

    Raises:
        UsageError: the object is not a marker.
    """
    name = directory.names.retry(shard_idx)
    try:
        return Mark.from_json(directory.store.read(name))
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(f"{directory.store.describe(name)} is not a marker ({error!r}). Remove it.") from None


def completions_to_stay(directory: RunDirectory, shard_idx: int, columns: Columns, mark: Mark) -> Iterator[Completion]:
    """Yield the completions of a marked part, without the rows to be retried.

    Args:
        columns: our columns of the part, without the dataset's.

    Raises:
        JobError: the part cannot be read.
    """
    names = [field.name for field in columns.of_completions]
    try:
        for batch in _batches(directory.store, directory.names.part(shard_idx), [*names, *mark.columns]):
            yield from from_batch(batch.filter(pc.invert(mark.are_meant(batch))).select(names))
    except FileNotFoundError:  # another worker has finished the shard, or the part was removed
        return
    except pa.ArrowException as error:
        where = directory.store.describe(directory.names.part(shard_idx))
        raise JobError(
            f"{where} cannot be read: {first_line(error)}. Remove it; its rows will be recomputed."
        ) from None


def count_meant(directory: RunDirectory, shard_idx: int, columns: Columns, mark: Mark) -> Counts:
    """Return the counts of the rows of a part that a mark means.

    Raises:
        JobError: the part cannot be read.
    """
    found, names = Counts(), [field.name for field in columns.fields if field.name != "prompt"]
    part = directory.names.part(shard_idx)
    try:
        for batch in _batches(directory.store, part, [*names, *mark.columns]):
            found.add_batch(batch.filter(mark.are_meant(batch)), columns.modes)
    except (pa.ArrowException, OSError) as error:
        raise JobError(f"{directory.store.describe(part)} cannot be read: {first_line(error)}.") from None
    return found


def redone_rows(
    directory: RunDirectory, shard_idx: int, mark: Mark, *, done: Container[SampleKey], missing: Iterable[SampleKey]
) -> Redone:
    """Return the rows of a marked part's successor with sampling options other than the run's.

    Args:
        done: the rows that stay.
        missing: those to be recomputed.
    """
    new = dict.fromkeys(missing, described(mark.changes)) if mark.changes else {}
    with directory.store.open(directory.names.part(shard_idx)) as file:
        old = from_metadata(pq.read_metadata(file).metadata or {})
    return new | {key: options for key, options in old.items() if key in done}


def writers_before(directory: RunDirectory, shard_idx: int, keys: Sequence[SampleKey]) -> Mapping[SampleKey, str]:
    """Return the worker that each row of a marked part has; ``UNKNOWN`` if the part is missing or says nothing usable.

    Args:
        keys: of its rows, in their order.
    """
    try:
        with directory.store.open(directory.names.part(shard_idx)) as file:
            return dict(zip(keys, writers_from(pq.read_metadata(file).metadata or {}, len(keys)), strict=True))
    except (FileNotFoundError, ValueError, pa.ArrowException):
        return dict.fromkeys(keys, UNKNOWN)


def positions_to_stay(directory: RunDirectory, shard_idx: int, mark: Mark) -> list[int]:
    """Return the positions within a marked part of the rows that are not to be retried.

    Raises:
        JobError: the part cannot be read.
    """
    part = directory.names.part(shard_idx)
    try:
        with directory.store.open(part) as file:
            meant = mark.are_meant(pq.ParquetFile(file).read(columns=mark.columns))
    except (pa.ArrowException, OSError) as error:
        raise JobError(f"{directory.store.describe(part)} cannot be read: {first_line(error)}.") from None
    return [at for at, is_meant in enumerate(meant.to_pylist()) if not is_meant]


def _batches(store: Store, part: str, names: list[str]) -> Iterator[pa.RecordBatch]:
    with store.open(part) as file:
        yield from pq.ParquetFile(file).iter_batches(batch_size=1000, columns=list(dict.fromkeys(names)))
