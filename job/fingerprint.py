"""A short hash of the contents of files. It shows whether a restart finds the same data and the same model."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

SAMPLED_BLOCKS, SAMPLED_BYTES = 1024, 64 << 10
"""About this many blocks of this many bytes are hashed, 64 MiB over all local files together. With many files it is
more, since at least two blocks of each are hashed: 200 MB for 1,500 files."""


def fingerprint(files: Sequence[str | Path]) -> str:
    """Hash the files' contents: small files in full, large ones in places, including both ends.

    Of a local file's name, only the extension counts, since it decides how the contents are read. For a URL, only the
    URL itself is hashed; those of the Hub contain the commit.
    """
    digest = hashlib.sha256()
    blocks_per_file = max(2, SAMPLED_BLOCKS // max(1, len(files)))
    for file in files:
        if "://" in str(file):
            digest.update(str(file).encode())
            continue
        path = Path(file)
        size = path.stat().st_size
        digest.update(f"{path.suffix}\0{size}\0".encode())
        step = max(SAMPLED_BYTES, -(-(size - SAMPLED_BYTES) // (blocks_per_file - 1)))
        with path.open("rb") as stream:
            for offset in range(0, size, step):
                stream.seek(offset)
                digest.update(stream.read(SAMPLED_BYTES))
    return digest.hexdigest()[:16]


def digest_of_json(value: Any) -> str:
    """Return the SHA-256 of a JSON value, in hexadecimal."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def digest_of_ends(file: Path) -> str:
    """Hash a file's size, and as much as is sampled of its start and of its end: a hint at which file has changed."""
    size = file.stat().st_size
    digest = hashlib.sha256(f"{size}".encode())
    with file.open("rb") as stream:
        for offset in dict.fromkeys((0, max(0, size - SAMPLED_BYTES))):
            stream.seek(offset)
            digest.update(stream.read(SAMPLED_BYTES))
    return digest.hexdigest()[:8]
