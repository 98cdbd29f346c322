"""Tables whose columns are separated by tabs."""

from job.data.formats import csv
from job.data.formats.files import Files
from job.data.source import Source


def open_files(files: Files) -> Source:
    """Read the files like csv, with tabs as the separator."""
    return csv.open_files(files, sep="\t")
