"""An open dataset: its rows, the files that they come from, and other files in the same place that are not read."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from job.data.runs import RunInput
from job.data.source import Source
from job.errors import shorten

SHOWN_FILES, SHOWN_UNREAD = 3, 5


@dataclass(frozen=True, slots=True, kw_only=True)
class DataFile:
    """A file that is read."""

    name: str
    """Relative to the dataset."""
    num_bytes: int | None = None
    digest: str | None = None
    """Changes with the size or with either end of a local file; with any byte of one that lies elsewhere."""


@dataclass(frozen=True, slots=True)
class Unread:
    """A file or a folder that is not read although it lies in the dataset's directory."""

    name: str
    """Relative to the dataset; of a folder, with a slash at the end."""
    why: str = ""
    """Empty if the name says it."""

    def __str__(self) -> str:
        return f"{shorten(self.name)} ({self.why})" if self.why else shorten(self.name)


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenDataset:
    """A source, with a fingerprint of its contents."""

    source: Source
    fingerprint: str
    """Changes when the rows change. (For large local files: when the size or one of the sampled places changes.)"""
    split: str
    commit: str | None = None
    """Of a repository of the Hub."""
    reading: Mapping[str, Any] = field(default_factory=dict)
    """What decides how the bytes of the files become rows. Empty for formats that have one meaning."""
    files: tuple[DataFile, ...] = ()
    """In the order of their rows. Empty if only ``datasets`` knows where the rows come from."""
    fingerprint_of: Callable[[int], str] | None = None
    """Returns the fingerprint that the first of the files would have alone. None: they are no such sequence."""
    infers_types: bool = False
    """Whether the types of values follow from all rows within ``--limit``."""
    is_partial: bool = False
    """Whether only the first rows can be read, because more was not needed."""
    other_splits: tuple[str, ...] = ()
    unread: tuple[Unread, ...] = ()
    runs: tuple[RunInput, ...] = ()
    """The earlier runs that wrote the files, if these are parts and nothing else."""
    remarks: tuple[str, ...] = ()
    """What else the user should know about the data."""

    def continues(self, num_files: int, fingerprint: str) -> bool:
        """Whether an earlier run's parts have been joined by others, so that new rows follow those that were there.

        Args:
            num_files: how many there were.
            fingerprint: of these.
        """
        may_grow = bool(self.runs) and self.fingerprint_of is not None and 0 < num_files < len(self.files)
        return may_grow and self.fingerprint_of is not None and self.fingerprint_of(num_files) == fingerprint

    def describe(self, limit: int | None) -> str:
        """Return a line that says what is read."""
        num_rows = self.source.num_rows
        rows = f"{num_rows:,} row{'' if num_rows == 1 else 's'}"
        if self.is_partial and limit is not None:
            rows = f"the first {f'{limit:,} rows' if limit > 1 else 'row'}"
        elif limit is not None and limit < num_rows:
            rows = f"the first {f'{limit:,} ' if limit > 1 else ''}of {rows}"
        return f"reading {rows} from {self.place}" if self.files else f"reading {rows} of {self.place}"

    @property
    def place(self) -> str:
        """Where the rows come from."""
        names = [file.name for file in self.files]
        files = f"{len(names):,} files: {some(names, SHOWN_FILES)}" if len(names) > 1 else "".join(map(shorten, names))
        splits = f"split {self.split} (not read: {', '.join(self.other_splits)})" if self.other_splits else ""
        return ", ".join(filter(None, (splits, files))) or "the dataset"

    @property
    def notes(self) -> tuple[str, ...]:
        """What lies there and is not read, and what else the user should know."""
        return (*((f"not read: {some(self.unread, SHOWN_UNREAD)}",) if self.unread else ()), *self.remarks)


def some(values: Sequence[object], num_shown: int) -> str:
    """Return the first values, and how many more there are."""
    more = f" (+{len(values) - num_shown:,})" if len(values) > num_shown else ""
    return ", ".join(map(shorten, values[:num_shown])) + more


def writable(name: str) -> str:
    """Return a file's name as text that any file can hold: bytes that are not UTF-8 are escaped.

    >>> writable("caf\\udce9.txt")
    'caf\\\\xe9.txt'
    """
    return name.encode(errors="surrogateescape").decode(errors="backslashreplace")
