"""Text: each line is a row with the column ``text``. Files are read in place, compressed ones from a copy."""

from job.data.formats import LINES, converted, lines_files
from job.data.formats.files import Files, Opened


def open_files(files: Files) -> Opened:
    """Index the lines; ``datasets`` converts files whose names have other endings."""
    return lines_files.open_files(files, is_json=False) if files.are_named(LINES) else converted.open_files(files)
