"""JSON lines: one object per line. Local, uncompressed files are read in place."""

from job.data.formats import LINES, json_file
from job.data.formats.files import Files
from job.data.lines import LinesSource
from job.data.source import Source


def open_files(files: Files) -> Source:
    """Index the lines, or let ``datasets`` convert the files."""
    if files.are_plain(LINES):
        return LinesSource(files.names, is_json=True, limit=files.config.limit)
    return json_file.open_files(files)
