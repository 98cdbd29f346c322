"""JSON lines: one object per line. Files are read in place, compressed ones from an unpacked copy."""

from job.data.formats import LINES, json_file, lines_files
from job.data.formats.files import Files, Opened


def open_files(files: Files) -> Opened:
    """Index the lines. Files whose names do not end like those of lines may be lists."""
    if files.are_named(LINES):
        return lines_files.open_files(files, is_json=True)
    return json_file.open_files(files)
