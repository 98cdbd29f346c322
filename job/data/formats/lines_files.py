"""Local files with one row per line. Compressed ones are unpacked once, so that any row is reached by one seek."""

import shutil
from pathlib import Path

from job.data.compression import is_compressed, open_bytes, unpacking
from job.data.conversions import converted
from job.data.formats import converted as by_datasets
from job.data.formats.files import Files, Opened
from job.data.lines import LinesSource

READER = "lines-2"
"""Goes into the manifest of runs on compressed files, which ``datasets`` used to read."""

COPY_BYTES = 1 << 20


def open_files(files: Files, *, is_json: bool) -> Opened:
    """Index the lines.

    Raises:
        UsageError: a compressed file is damaged.
    """
    packed = [name for name in files.names if is_compressed(name)]
    if packed and files.is_older:
        return by_datasets.open_files(files)
    unpacked = {name: _unpacked(name) for name in packed}
    paths = [unpacked.get(name, name) for name in files.names]
    source = LinesSource(paths, is_json=is_json, limit=files.config.limit, names=files.names)
    return Opened(source=source, reading={"reader": READER} if packed else {})


def _unpacked(path: str) -> str:
    name = Path(path).stem

    def unpack(directory: Path) -> None:
        with unpacking(path), open_bytes(path) as packed, (directory / name).open("wb") as plain:
            shutil.copyfileobj(packed, plain, COPY_BYTES)

    return str(converted([path], READER, name, unpack) / name)
