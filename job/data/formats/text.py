"""Text: each line is a row with the column ``text``. Local, uncompressed files are read in place."""

from job.data.formats import LINES, converted
from job.data.formats.files import Files
from job.data.lines import LinesSource
from job.data.source import Source


def open_files(files: Files) -> Source:
    """Index the lines, or let ``datasets`` convert the files."""
    if files.are_plain(LINES):
        return LinesSource(files.names, is_json=False, limit=files.config.limit)
    return converted.open_files(files)
