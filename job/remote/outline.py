"""A directory with the names of files that lie elsewhere: code that chooses files by their names works on it as on any
directory, and only the chosen files are fetched.
"""

import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from job.errors import UsageError, call_place
from job.remote.tree import RemoteTree

NOT_DATA = (".gitattributes", ".gitignore", ".gitkeep")
"""Names of files that only git needs."""


@dataclass(frozen=True)
class Outline:
    """The files of a tree, all of them empty except those that were filled."""

    root: Path
    tree: RemoteTree

    def fill(self, paths: Sequence[str]) -> None:
        """Give files their contents."""
        wanted = [path for path in paths if path in self.tree.files]
        for path, fetched in zip(wanted, self.tree.fetch(wanted), strict=True):
            shutil.copyfile(fetched, self.root / path)

    def path_of(self, file: str) -> str:
        """Return the path in the tree of a file in the directory.

        Raises:
            UsageError: it is not in the directory.
        """
        path = Path(os.path.relpath(file, self.root)).as_posix()
        if path not in self.tree.files:
            raise UsageError(f"{file} is not in {self.tree.name}. Name files that are.")
        return path


@contextmanager
def outlined(tree: RemoteTree) -> Iterator[Outline]:
    """Make such a directory, for as long as it is needed."""
    with tempfile.TemporaryDirectory(prefix="outline-") as directory:
        root = Path(directory).resolve()
        call_place(root, tree.name)
        folders: set[Path] = set()
        for path in tree.files:
            file = root / _checked(path, tree)
            if file.name in NOT_DATA:
                continue
            if file.parent not in folders:
                file.parent.mkdir(parents=True, exist_ok=True)
                folders.add(file.parent)
            file.touch()
        yield Outline(root, tree)


def _checked(path: str, tree: RemoteTree) -> str:
    """Return a path that stays below the directory that it is put in."""
    if any(part in ("", ".", "..") for part in path.split("/")):
        raise UsageError(f"{tree.name} has a file named {path!r}, which no file can be named here. Rename it.")
    return path
