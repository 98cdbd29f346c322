"""Which files of a local directory are read. The rules are ours, and what they leave out is named.

1. All files of one format are read, at any depth, whatever their names are, in the order of their paths. Links are
   followed. What is reached twice is read once, under its own name.
2. Not read, but named: hidden files and folders, folders that begin with two underscores, run directories, a ``.json``
   file that is one object without rows beside other data, and files without an ending of data (``.bak``, ``.tmp``,
   ``.py``, ``.png``).
3. Refused, because it could be rows that nobody would miss: files of several formats, archives and tables that cannot
   be read, links to nothing.

A directory whose ``README.md`` is a dataset card with ``configs`` is read as that says: see ``opening``.
"""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from job.data.dataset import SHOWN_FILES, SHOWN_UNREAD, Unread, some, writable
from job.data.formats import COMPRESSIONS, ENDINGS, Format, ending_of, format_of
from job.data.runs import is_run
from job.errors import UsageError

OTHER_DATA = (
    *(".bz2", ".xz", ".lz4", ".zip", ".7z", ".rar", ".tar", ".tgz", ".gz", ".zst", ".xls", ".xlsx", ".ods"),
    *(
        ".jsonlines",
        ".jl",
        ".tab",
        ".psv",
        ".feather",
        ".avro",
        ".orc",
        ".pkl",
        ".pickle",
        ".npz",
        ".h5",
        ".hdf5",
        ".sqlite",
        ".duckdb",
    ),
)
"""Endings of archives and tables. A file in a format that can be read is none of them, whatever this says."""

DOCUMENTS = ("readme", "license", "licence", "notice", "copying", "changelog", "citation", "requirements")
"""Names of ``.txt`` files that are not rows."""

CARD = "README.md"

ABOUT = (CARD, "state.json", "dataset_info.json")
"""Files that ``datasets`` reads to find out what the others are."""

METADATA = ("dataset_infos.json", "dataset_info.json", "dataset_dict.json", "config.json")
"""Files of ``datasets`` and of models, which ``datasets`` passes over, too."""

MAX_DESCRIPTION_BYTES = 1 << 20

OF_RUN = "a run directory"
"""Why such a folder is not entered."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """The files to read, and what lies beside them."""

    root: Path
    """The directory to which the names of files are relative."""
    files: tuple[Path, ...]
    unread: tuple[Unread, ...] = ()

    @property
    def format(self) -> Format:
        """The one format of the files."""
        known = format_of(self.files[0].name)
        assert known is not None
        return known


@dataclass(frozen=True, slots=True)
class _Walked:
    """All files below a directory, and what was not entered. Names are relative, with slashes."""

    files: list[str]
    unread: list[Unread]


def list_directory(root: Path) -> Listing:
    """Return the data in a directory.

    Raises:
        UsageError: there is none, or something that could be data would not be read.
        OSError: a folder cannot be read.
    """
    found = _walk(root)
    kinds: dict[str, list[str]] = {}
    others, unread = [], found.unread
    for name in found.files:
        known = format_of(name)
        if _is_about_data(name):
            unread.append(Unread(name))
        elif known is not None:
            kinds.setdefault(known.module, []).append(name)
        elif Path(name).suffix.lower() in OTHER_DATA:
            others.append(name)
        else:
            unread.append(Unread(name))
    unread += _descriptions(root, kinds)
    if not kinds:
        if runs := [item.name.rstrip("/") for item in found.unread if item.why == OF_RUN]:
            raise UsageError(
                f"--dataset {root} holds runs, not data: {some(runs, SHOWN_UNREAD)}. Name one of them: "
                f"--dataset {root / runs[0]}."
            )
        lies = f": {some([*others, *in_order(unread)], SHOWN_FILES)}" if others or unread else ""
        raise UsageError(
            f"--dataset {root} holds no files that can be read{lies}. Supported endings: {', '.join(ENDINGS)}."
        )
    _refuse_others(root, kinds, others)
    files = [root / name for names in kinds.values() for name in names]
    return Listing(root=root, files=tuple(sorted(files, key=str)), unread=in_order(unread))


def data_beside(root: Path, files: Sequence[str]) -> tuple[Unread, ...]:
    """Return the data in a directory that is not among the files that ``datasets`` has chosen."""
    chosen = {os.path.realpath(file) for file in files}
    found = _walk(root)
    left = [name for name in found.files if name not in ABOUT and os.path.realpath(root / name) not in chosen]
    return in_order([*found.unread, *map(Unread, left)])


def _walk(root: Path) -> _Walked:
    """List a directory and all folders below it, each once: first those that are not links."""
    seen = {identity(folder) for folder in root.resolve().parents}
    folders, links, walked = [root], list[Path](), _Walked([], [])
    linked_files: list[str] = []
    while folders or links:
        folder = folders.pop() if folders else links.pop(0)
        name = folder.relative_to(root).as_posix()
        if identity(folder) in seen:
            walked.unread.append(Unread(f"{name}/", f"a link to {folder.readlink()}"))
            continue
        seen.add(identity(folder))
        for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
            path, name = folder / entry.name, (folder / entry.name).relative_to(root).as_posix()
            if path.is_dir():  # unlike those of entry, its methods take a link to itself for a link to nothing
                if (why := _why_closed(path)) is not None:
                    walked.unread.append(Unread(f"{name}/", why))
                else:
                    (links if entry.is_symlink() else folders).append(path)
            elif not path.is_file():
                walked.unread.append(_not_a_file(path, name))
            elif entry.name.startswith("."):
                walked.unread.append(Unread(name))
            else:
                (linked_files if entry.is_symlink() else walked.files).append(name)
    own = {identity(root / name): name for name in walked.files if linked_files}
    for name in linked_files:
        if (target := own.get(identity(root / name))) is not None:
            walked.unread.append(Unread(name, f"a link to {target}"))
        else:
            walked.files.append(name)
    walked.files.sort()
    return walked


def identity(path: Path) -> tuple[int, int]:
    """Return what two paths have in common if they are the same file or folder."""
    found = path.stat()
    return found.st_dev, found.st_ino


def _why_closed(folder: Path) -> str | None:
    """Return why a folder is not entered; None if it is."""
    if folder.name.startswith((".", "__")):
        return ""
    return OF_RUN if is_run(folder) else None


def _not_a_file(path: Path, name: str) -> Unread:
    """Return what is neither a file nor a folder.

    Raises:
        UsageError: it is a link to data that is not there.
    """
    if path.is_symlink() and format_of(path.name) is not None:
        raise UsageError(f"{path} is a link to {path.readlink()}, which is not there. Restore it, or remove the link.")
    return Unread(name, "a link to nothing" if path.is_symlink() else "not a regular file")


def _is_about_data(name: str) -> bool:
    path = Path(name.lower())
    return path.name in METADATA or (path.suffix == ".txt" and path.stem in DOCUMENTS)


def _descriptions(root: Path, kinds: dict[str, list[str]]) -> list[Unread]:
    """Take the ``.json`` files that describe the others out of the data, and return them."""
    found = [name for name in kinds.get("json_file", ()) if _is_description(root / name)]
    if len(found) == sum(map(len, kinds.values())):
        return []  # one object a file is data, if there is nothing else
    rest = [name for name in kinds.pop("json_file", ()) if name not in found]
    if rest:
        kinds["json_file"] = rest
    return [Unread(name, "one object, no rows") for name in found]


def _is_description(file: Path) -> bool:
    """Whether a JSON file is one object without a list of objects: statistics or settings."""
    if file.suffix.lower() != ".json" or file.stat().st_size > MAX_DESCRIPTION_BYTES:
        return False
    try:
        value: Any = json.loads(file.read_bytes())
    except ValueError:
        return False
    return isinstance(value, dict) and not any(
        isinstance(inner, list) and any(isinstance(item, dict) for item in inner) for inner in value.values()
    )


def _refuse_others(root: Path, kinds: dict[str, list[str]], others: Sequence[str]) -> None:
    first = max(kinds.values(), key=len)
    place = "**/" if any("/" in name for name in first) else ""
    rest = "*" if any(name.lower().endswith(COMPRESSIONS) for name in first) else ""
    advice = f"Choose with --data-files, for example --data-files '{place}*{ending_of(first[0])}{rest}'."
    if len(kinds) > 1:
        examples = ", ".join(sorted(names[0] for names in kinds.values()))
        raise UsageError(f"--dataset {root} holds files of several kinds: {examples}. {advice}")
    if others:
        raise UsageError(f"--dataset {root}: {others[0]} may hold rows, but cannot be read. {advice}")


def in_order(unread: Sequence[Unread]) -> tuple[Unread, ...]:
    """Return first what looks most like data, last what is hidden."""

    def place(item: Unread) -> tuple[bool, bool, str]:
        name = Path(item.name).name
        return name.startswith("."), not any(ending in name.lower() for ending in ENDINGS), item.name

    return tuple(sorted({Unread(writable(item.name), item.why) for item in unread}, key=place))
