"""Files that the user names by patterns, such as ``data/**/*.jsonl``."""

import fnmatch
import glob
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from job.data.dataset import Unread
from job.data.formats import ENDINGS, ending_of, format_of
from job.data.listing import Listing, identity, in_order
from job.data.runs import PART, is_run
from job.errors import UsageError
from job.wording import listed


def list_patterns(patterns: Sequence[str], output: Path | None = None, *, one_format: bool = True) -> Listing:
    """Return the files that globs match, each in sorted order. A file that several match is read once, at its first
    place. Of a run directory that a wildcard reaches, only the parts are read.

    Args:
        output: the run directory of this run, which is never its own input.
        one_format: whether files of several formats are an error.

    Raises:
        UsageError: a pattern matches no file, or the files have several formats.
    """
    files: dict[Path, Path] = {}
    unread: dict[Path, str] = {}
    own = output if output is not None and is_run(output) else None
    for pattern in map(Path, patterns):
        matched = _matches(pattern)
        asked = [path for path in matched if _num_hidden(path) <= _num_hidden(pattern)]
        closed = _closed(asked, _literal(pattern), own)
        chosen = [path for path in asked if path.is_file() and path not in closed]
        if not chosen:
            parts = str(pattern).split(",")
            if len(parts) > 1 and all(Path(part.strip()).exists() for part in parts):
                raise UsageError(f"--dataset {pattern} is several paths. Give one: a directory, or a glob in quotes.")
            reason = f"there is no such file{'' if matched else ' or directory'}"
            is_own = own in closed.values()
            raise UsageError(f"--dataset {pattern}: {'it is the output of this very run' if is_own else reason}.")
        unread |= dict.fromkeys(closed.values(), "a run directory")
        entered = {folder for path in asked for folder in path.parents} | closed.keys()
        unread |= {path: "a folder" for path in asked if path not in entered and path.is_dir()}
        for path in chosen:
            # Do not follow a link to its target: in a Hub cache, two files with equal contents are links to one file.
            files.setdefault(path.parent.resolve() / path.name, path.absolute())
    if one_format:
        _check_one_format(patterns[0], list(files.values()))
    root = Path(os.path.commonpath([_literal(Path(pattern)).absolute() for pattern in patterns]))
    names = [Unread(f"{os.path.relpath(path, root)}/", why) for path, why in unread.items()]
    return Listing(root=root, files=tuple(files.values()), unread=in_order(names))


def _check_one_format(pattern: str, files: Sequence[Path]) -> None:
    endings = sorted({ending_of(file.name) for file in files})
    known = {format_of(file.name) for file in files}
    readable = f"Endings that can be read: {', '.join(ENDINGS)}."
    if known == {None}:
        raise UsageError(f"--dataset {pattern}: files {_with(endings)} cannot be read. {readable}")
    if len(known) > 1:
        raise UsageError(f"--dataset {pattern} names files {_with(endings)}. Give files of one format. {readable}")


def _with(endings: Sequence[str]) -> str:
    """Return in words what files end in.

    >>> _with(["", ".a"]), _with([".a", ".b"]), _with([""])
    ('without an ending and that end in .a', 'that end in .a and .b', 'without an ending')
    """
    named = [ending for ending in endings if ending]
    of_named = [f"that end in {listed(named)}"] if named else []
    return " and ".join([*(["without an ending"] if "" in endings else []), *of_named])


def _matches(pattern: Path) -> list[Path]:
    if pattern.exists():
        return [pattern]
    return sorted(set(_expand(Path(pattern.anchor), pattern.parts[1 if pattern.anchor else 0 :])))


def _expand(base: Path, parts: Sequence[str]) -> Iterator[Path]:
    """Yield what a pattern matches below a folder. Unlike ``Path.glob``, ``**`` follows links, but no cycles."""
    if not parts:
        yield base
    elif parts[0] == "**":
        for folder in _folders(base):
            yield from _expand(folder, parts[1:] or ("*",))
    elif not glob.has_magic(parts[0]):
        if os.path.lexists(base / parts[0]):
            yield from _expand(base / parts[0], parts[1:])
    elif base.is_dir():
        for path in base.iterdir():
            if fnmatch.fnmatchcase(path.name, parts[0]):
                yield from _expand(path, parts[1:])


def _folders(root: Path) -> Iterator[Path]:
    """Yield a folder and all folders below it that are not hidden, each once."""
    seen, waiting = set(), [root] if root.is_dir() else []
    while waiting:
        folder = waiting.pop(0)
        if identity(folder) not in seen:
            seen.add(identity(folder))
            yield folder
            inner = [path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")]
            waiting += sorted(inner, key=lambda path: (path.is_symlink(), path))


def _num_hidden(path: Path) -> int:
    """Count the hidden parts of a path or pattern: a file that has more of them than the pattern was not asked for."""
    return sum(part.startswith(".") and part != ".." for part in path.parts)


def _literal(pattern: Path) -> Path:
    """Return the folder up to which a pattern has no wildcard."""
    folders = [pattern, *pattern.parents]
    return next(folder for folder in folders[1:] if not glob.has_magic(str(folder)))


def _closed(paths: Sequence[Path], named: Path, own: Path | None) -> dict[Path, Path]:
    """Return the paths that are not read because they belong to a run, with its directory: all of this very run's, and
    those of other runs that are not parts, unless the user has named the directory.

    Args:
        named: the folder up to which the pattern has no wildcard.
    """
    folders = {folder for path in paths for folder in (path, *path.parents) if folder.is_relative_to(named)}
    runs = {folder for folder in folders if folder != named and folder.is_dir() and is_run(folder)}
    found = {}
    for path in paths:
        if own is not None and path.resolve().is_relative_to(own.resolve()):
            found[path] = own
        elif (path.is_dir() or not PART.fullmatch(path.name)) and (above := runs.intersection((path, *path.parents))):
            found[path] = min(above)
    return found
