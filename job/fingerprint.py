"""What a set of files contains, as a short hash: to tell whether a restart meets the same data and the same model."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

SAMPLED_BLOCKS, SAMPLED_BYTES = 1024, 64 << 10
"""Of local files, about so many blocks of so many bytes are hashed, 64 MiB in all files together; of many files more,
since no fewer than two blocks of each are: 200 MB of 1,500."""


def fingerprint(files: Sequence[str | Path]) -> str:
    """Hash the files' contents: all of small ones, some places of large ones, their ends included.

    Of local names, only the ending counts: it decides how the contents are read. URLs are hashed as they are; those of
    the Hub hold their commit.
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
