"""Tables whose columns are separated by tabs."""

from job.data.formats import csv
from job.data.formats.files import Files, Opened


def open_files(files: Files) -> Opened:
    """Read the files like csv, with tabs as the delimiter."""
    return csv.open_files(files, "\t")
