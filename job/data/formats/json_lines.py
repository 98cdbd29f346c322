"""JSON lines: one object per line. Local files are read in place, compressed ones from an unpacked copy."""

from job.data.formats import LINES, json_file, lines_files
from job.data.formats.files import Files, Opened


def open_files(files: Files) -> Opened:
    """Index the lines; what is not on this machine is converted by ``datasets``."""
    if files.are_named(LINES):
        return lines_files.open_files(files, is_json=True)
    return json_file.open_files(files)
