"""What the first bytes of a file say against its name: it is something else, as every row would otherwise report."""

import json
from collections.abc import Sequence
from pathlib import Path

from job.data.compression import is_compressed, open_bytes, unpacking
from job.data.formats import Format, ending_of
from job.errors import UsageError

NUM_BYTES = 64 << 10

POINTERS = (
    (
        b"version https://git-lfs.github.com/spec/",
        "a Git LFS pointer, not the data",
        "Run git lfs pull in its repository.",
    ),
    (b"/annex/objects/", "a git-annex pointer, not the data", "Run git annex get on it."),
)
"""First bytes, what such a file is, and what to do."""

MAGIC = (
    *POINTERS,
    (b"\x1f\x8b", "compressed with gzip", "Let its name end in .gz, or decompress it."),
    (b"\x28\xb5\x2f\xfd", "compressed with zstd", "Let its name end in .zst, or decompress it."),
    (b"BZh", "compressed with bzip2", "Let its name end in .bz2, or decompress it."),
    (b"\xfd7zXZ\x00", "compressed with xz", "Let its name end in .xz, or decompress it."),
    (b"PK\x03\x04", "a zip archive (or a spreadsheet)", "Unpack it, or save it in another format."),
    (b"PAR1", "a Parquet file", "Let its name end in .parquet."),
    (b"ARROW1", "an Arrow file", "Let its name end in .arrow."),
    (b"SQLite format 3", "an SQLite database", "Export its table."),
)
"""The same of all files that are not text."""

WIDE = (
    (b"\xff\xfe\x00\x00", "UTF-32"),
    (b"\x00\x00\xfe\xff", "UTF-32"),
    (b"\xff\xfe", "UTF-16"),
    (b"\xfe\xff", "UTF-16"),
)
"""Byte order marks."""

ARROW = (b"ARROW1", b"\xff\xff\xff\xff")
"""The first bytes of Arrow's two formats."""

PAGE = (b"<!doctype html", b"<html")

TEXT = ("json_lines", "json_file", "csv", "tsv", "text")
"""Modules of formats that are text."""


def check_heads(files: Sequence[str], known: Format) -> None:
    """Look at the first bytes of local files.

    Raises:
        UsageError: one of them is not what its name says.
    """
    for file in files:
        if ending_of(file) not in known.endings:  # the user has named it as what it is not
            continue
        with Path(file).open("rb") as stream:
            head = stream.read(NUM_BYTES)
        if (found := _magic(head, known, only_pointers=is_compressed(file)) or _content(file, known)) is not None:
            raise UsageError(f"{file} is {found}")


def _content(file: str, known: Format) -> str | None:
    """Return what is wrong with the beginning of a file, whether it is compressed or not."""
    with unpacking(file), open_bytes(file) as stream:
        head = stream.read(NUM_BYTES)
        is_whole = not stream.read(1)
    if known.module == "converted" and not head.startswith(ARROW):
        return "not an Arrow file. Write it again."
    if known.module in ("json_lines", "text") and (encoding := _wide(head)) is not None:
        return f"{encoding} text. Convert it to UTF-8: iconv -f {encoding} -t UTF-8"
    return _document(head, is_whole=is_whole) if known.module == "json_lines" else None


def _magic(head: bytes, known: Format, *, only_pointers: bool) -> str | None:
    """Return what a file is by its first bytes, if that is not what its name says."""
    start = head.removeprefix(b"\xef\xbb\xbf").lstrip()[:20].lower()
    if known.module != "text" and start.startswith(PAGE):
        return "a web page, not the data. Download the file itself (on the Hub: /resolve/ in its address, not /blob/)."
    table = MAGIC if known.module in TEXT and not only_pointers else POINTERS
    return next((f"{what}. {advice}" for first, what, advice in table if head.startswith(first)), None)


def _wide(head: bytes) -> str | None:
    """Return the encoding of text with more than one byte a character."""
    name = next((name for mark, name in WIDE if head.startswith(mark)), None)
    if name is None and len(head) > 3 and head[:4].count(b"\0") == 2 and (head[0] == 0) == (head[2] == 0):
        name = "UTF-16"
    return name


def _document(head: bytes, *, is_whole: bool) -> str | None:
    """Return what a JSON lines file is if its first lines are parts of one value."""
    lines = head.removeprefix(b"\xef\xbb\xbf").strip().splitlines() or [b""]
    first = lines[0].strip()
    advice = "Let its name end in .json, or write one object per line (jq -c)."
    if b"\r" in head.strip() and b"\n" not in head.strip():
        return "one long line: its line ends are carriage returns alone. Convert them: tr '\\r' '\\n'"
    if first == b"{" and len(lines) > 1:
        return f"one JSON object over several lines, not JSON lines. {advice}"
    is_only = len(lines) == 1 and is_whole
    if first.startswith(b"[") and (is_only or not _is_json(first)) and (len(lines) > 1 or is_only):
        return f"one JSON list, not JSON lines. {advice}"
    return None


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line)
    except ValueError:
        return False
    return True
