"""The table of input formats. A format is one module in this folder with a function ``open_files(files) -> Source``,
and one line here.

The modules are imported when a dataset of their format is opened: this table is for ``--help``, too, so it is light.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from job.data.formats.files import Files
    from job.data.source import Source

COMPRESSIONS = (".gz", ".zst")
"""Endings that may follow a format's own."""

LINES = (".jsonl", ".ndjson", ".txt")
"""Endings of files whose rows are lines. Users may read each of them as JSON or as text."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Format:
    """How files of some endings are read."""

    module: str
    """The module in this folder that opens such files."""
    endings: tuple[str, ...]
    """Of the files' names, in small letters. ``--help`` lists them."""
    reader: str | None = None
    """What ``datasets`` calls its reader of such files, and users may, too: ``--dataset csv --data-files a.log``. None
    if it has none: then the module must read all files itself, the compressed ones included.
    """
    also: tuple[str, ...] = ()
    """Endings of other formats that this one takes if users name its reader."""

    def open(self, files: "Files") -> "Source":
        """Open files of this format.

        Raises:
            UsageError, OSError, ValueError, pyarrow.ArrowException, DatasetsError: they cannot be read.
        """
        source: Source = import_module(f"{__name__}.{self.module}").open_files(files)
        return source


FORMATS = (
    Format(module="json_lines", endings=(".jsonl", ".ndjson"), reader="json", also=LINES),
    Format(module="json_file", endings=(".json",), reader="json"),
    Format(module="tsv", endings=(".tsv",), reader="csv"),
    Format(module="csv", endings=(".csv",), reader="csv"),
    Format(module="text", endings=(".txt",), reader="text", also=LINES),
    Format(module="parquet", endings=(".parquet",), reader="parquet"),
    Format(module="converted", endings=(".arrow",), reader="arrow"),
)
"""Of the formats with one reader, the last also takes files whose names say nothing."""

CONVERTED = Format(module="converted", endings=())
"""What only ``datasets`` knows to read: some datasets of the Hub."""

ENDINGS = tuple(ending for known in FORMATS for ending in known.endings)
READERS = tuple(dict.fromkeys(known.reader for known in FORMATS if known.reader))


def ending_of(name: str) -> str:
    """Return the ending that says how to read a file.

    >>> ending_of("a.JSONL.gz"), ending_of("https://host/b.parquet")
    ('.jsonl', '.parquet')
    """
    path = Path(name)
    return Path(path.stem if path.suffix.lower() in COMPRESSIONS else path.name).suffix.lower()


def format_of(name: str) -> Format | None:
    """Return the format that a file has by its name, if it is one of ours."""
    return next((known for known in FORMATS if ending_of(name) in known.endings), None)


def format_of_reader(reader: str, names: Sequence[str]) -> Format:
    """Return the format of files for which ``datasets`` has chosen a reader, or the user has."""
    ours = [known for known in FORMATS if known.reader == reader]
    for known in ours:
        if names and all(ending_of(name) in known.endings + known.also for name in names):
            return known
    return ours[-1] if ours else CONVERTED
