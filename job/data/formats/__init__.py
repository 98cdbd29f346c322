"""The table of input formats. A format is one module in this folder with a function ``open_files(files) -> Opened``,
and one line here.

A module is imported only when a dataset of its format is opened: ``--help`` reads this table, so it must load fast.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from job.errors import UsageError
from job.wording import flag

if TYPE_CHECKING:
    from job.config import DataConfig
    from job.data.formats.files import Files, Opened

COMPRESSIONS = (".gz", ".bz2", ".xz", ".zst", ".zip")
"""Endings that may follow the ending of a format."""

LINES = (".jsonl", ".ndjson", ".txt")
"""Endings of files with one row per line. Users may read any of them as JSON or as text."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Format:
    """How files with certain endings are read."""

    module: str
    """The module in this folder that opens such files."""
    endings: tuple[str, ...]
    """Endings of file names, in lower case. ``--help`` lists them."""
    reader: str | None = None
    """The reader for such files in ``datasets``, which users can name, too: ``--dataset csv --data-files a.log``.
    None: ``datasets`` has no reader, and the module must read all files itself, including compressed ones.
    """
    options: tuple[str, ...] = ()
    """Fields of ``DataConfig`` that only this format and others that name them have a use for."""
    also: tuple[str, ...] = ()
    """Endings of other formats that this one accepts if the user names its reader."""

    def open(self, files: "Files") -> "Opened":
        """Open files of this format.

        Raises:
            UsageError, OSError, ValueError, pyarrow.ArrowException, DatasetsError: the files cannot be read.
        """
        opened: Opened = import_module(f"{__name__}.{self.module}").open_files(files)
        return opened


FORMATS = (
    Format(module="json_lines", endings=(".jsonl", ".ndjson"), reader="json", also=LINES),
    Format(module="json_file", endings=(".json",), reader="json"),
    Format(module="tsv", endings=(".tsv",), reader="csv", options=("csv_delimiter", "csv_encoding")),
    Format(module="csv", endings=(".csv",), reader="csv", options=("csv_delimiter", "csv_encoding")),
    Format(module="spreadsheet", endings=(".xlsx", ".xlsm"), options=("sheet",)),
    Format(module="text", endings=(".txt",), reader="text", also=LINES),
    Format(module="parquet", endings=(".parquet",), reader="parquet"),
    Format(module="converted", endings=(".arrow",), reader="arrow"),
)
"""If several formats share a reader, the last of them also gets files with unknown endings."""

CONVERTED = Format(module="converted", endings=())
"""For data that only ``datasets`` can read, such as some datasets on the Hub."""

ENDINGS = tuple(ending for known in FORMATS for ending in known.endings)
READERS = tuple(dict.fromkeys(known.reader for known in FORMATS if known.reader))


def ending_of(name: str) -> str:
    """Return the ending that decides how a file is read.

    >>> ending_of("a.JSONL.gz"), ending_of("https://host/b.parquet")
    ('.jsonl', '.parquet')
    """
    path = Path(name)
    return Path(path.stem if path.suffix.lower() in COMPRESSIONS else path.name).suffix.lower()


def format_of(name: str) -> Format | None:
    """Return the format of a file by its name; None if it is not in the table."""
    return next((known for known in FORMATS if ending_of(name) in known.endings), None)


def format_of_reader(reader: str, names: Sequence[str]) -> Format:
    """Return the format of files whose reader was chosen by ``datasets`` or by the user."""
    ours = [known for known in FORMATS if known.reader == reader]
    for known in ours:
        if names and all(ending_of(name) in known.endings + known.also for name in names):
            return known
    return ours[-1] if ours else CONVERTED


def check_options(known: Format, config: "DataConfig") -> None:
    """Refuse options of other formats.

    Raises:
        UsageError: one was given.
    """
    for name in dict.fromkeys(name for other in FORMATS for name in other.options):
        if getattr(config, name) is not None and name not in known.options:
            endings = ", ".join(ending for other in FORMATS if name in other.options for ending in other.endings)
            raise UsageError(f"{flag(name)} is for {endings}, which --dataset {config.dataset} is not. Leave it out.")
