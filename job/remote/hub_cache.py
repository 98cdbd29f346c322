"""The cache of ``huggingface_hub``, whose layout is documented: what it says about the files of a commit."""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from job.remote.contents import SHA256, hashes_of
from job.remote.tree import RemoteFile, Tree

SHA1 = re.compile("[0-9a-f]{40}")


def folder_of(kind: str, name: str) -> Path:
    """Return the folder of a repository in the cache of ``huggingface_hub``, whose layout is documented."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE) / f"{kind}s--{name.replace('/', '--')}"


def in_order(files: Iterable[RemoteFile]) -> Tree:
    """Return files as a tree."""
    return {file.path: file for file in sorted(files, key=lambda file: file.path)}


def file_of_client(path: str, entry: dict[str, Any]) -> RemoteFile:
    """Return a file of the listings that the client keeps, from its version 2 on."""
    sha256 = entry.get("lfs_sha256")
    digest = f"sha256:{sha256}" if sha256 else f"git:{entry['blob_id']}"
    return RemoteFile(path=path, num_bytes=entry.get("lfs_size") or entry["size"], digest=digest)


def files_of_snapshot(directory: Path) -> Iterable[RemoteFile]:
    """Yield the files of a snapshot without a listing. They are links to blobs, which are named by their hashes; where
    there are no links, they are hashed.
    """
    files = [path for path in directory.rglob("*") if path.is_file()]
    names = {path: path.resolve().name for path in files}
    copies = [path for path, name in names.items() if not (SHA256.fullmatch(name) or SHA1.fullmatch(name))]
    names |= zip(copies, hashes_of(copies, f"files of {directory.parents[1].name}"), strict=True)
    for path, name in names.items():
        digest = f"sha256:{name}" if SHA256.fullmatch(name) else f"git:{name}"
        yield RemoteFile(path=path.relative_to(directory).as_posix(), num_bytes=path.stat().st_size, digest=digest)
