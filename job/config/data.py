"""Which rows of which dataset to read, and which of its columns to keep. Reads no files."""

from dataclasses import dataclass

from job.errors import require
from job.modes.options import option
from job.modes.texts import is_encoding, read_delimiter

EARLIER_ERRORS = ("skip", "carry")


@dataclass(frozen=True, slots=True, kw_only=True)
class DataConfig:
    """Which rows to read."""

    dataset: str
    """Hub id, or a file, glob or directory, here or at an address."""
    dataset_config: str | None = option(None, "Configuration (subset) of a Hub dataset.")
    dataset_revision: str | None = option(None, "Branch, tag or commit of a Hub dataset.")
    split: str | None = option(
        None, "Split [default: train, or the only one]. A directory may have several: see README."
    )
    data_files: tuple[str, ...] = option(
        (), "Files or globs inside the dataset. Repeat or use commas.", may_have_commas=True, is_path=True
    )
    """Paths or globs inside the dataset, or files anywhere when ``dataset`` is a format name such as ``json``."""
    streaming: bool = option(
        False,
        "Read Parquet that lies elsewhere in place, without a local copy: only the columns that are needed.",
        is_switch=True,
    )
    csv_delimiter: str | None = option(
        None,
        "What separates the cells of csv: a character, or tab [default: a comma; ; tab and | are recognized].",
        metavar="CHAR",
        read=read_delimiter,
    )
    csv_encoding: str | None = option(
        None, "Encoding of csv files, for example cp1252 [default: UTF-8, or UTF-16 if the file is marked so]."
    )
    sheet: str | None = option(None, "Sheet of an .xlsx file [default: the first].")
    limit: int | None = option(None, "Process only the first N rows. A larger limit continues the same run.")
    id_column: str | None = option(None, "Column to write right after the indices.")
    keep_columns: tuple[str, ...] = option(
        (),
        "Columns to copy to the output; '*' for all, OLD=NEW under another name. Repeat or use commas.",
        may_have_commas=True,
    )
    partial: bool = option(False, "Read an earlier run that is not finished: the rows that are in its parts.")
    earlier_errors: str | None = option(
        None,
        "What becomes of the error rows of an earlier run that is the dataset: left out, or carried on as error rows "
        "[default: skip].",
        choices=EARLIER_ERRORS,
    )
    """None: ``skip``, but a run that began without this option goes on with them as rows like any other."""

    def __post_init__(self) -> None:
        require(bool(self.dataset), "dataset", self.dataset, "a Hub id or a path")
        if self.csv_delimiter is not None:
            is_delimiter = self.csv_delimiter.isascii() and self.csv_delimiter not in ("", '"', "\r", "\n", "\0")
            is_delimiter = is_delimiter and len(self.csv_delimiter) == 1
            require(is_delimiter, "csv-delimiter", self.csv_delimiter, "a single character such as ';', or 'tab'")
        if self.csv_encoding is not None:
            require(is_encoding(self.csv_encoding), "csv-encoding", self.csv_encoding, "one that Python knows")
        if self.limit is not None:
            require(self.limit > 0, "limit", self.limit, "at least 1")
        choices = ", ".join(EARLIER_ERRORS)
        is_known = self.earlier_errors in (None, *EARLIER_ERRORS)
        require(is_known, "earlier-errors", self.earlier_errors, f"one of {choices}")
