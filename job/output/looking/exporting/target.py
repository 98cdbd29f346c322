"""The file that an export goes to: whole or not there, and nobody's file is lost for it."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from job.errors import JobError, UsageError
from job.output.store.local import fsync_dir


@contextlib.contextmanager
def new_file(path: Path, run_dir: Path, *, force: bool) -> Iterator[BinaryIO]:
    """Open a file under another name in the same directory, and give it its name once it is durable.

    A pipe or a device is written as it is.

    Args:
        run_dir: where no file of ours belongs.
        force: whether an older file may be replaced.

    Raises:
        UsageError: the file cannot be begun.
        JobError: it cannot be written to its end; nothing is left of it.
    """
    try:
        is_special = path.exists() and not path.is_file() and not path.is_dir()
        if not is_special:
            _check(path, run_dir, force=force)
        real = path if is_special else Path(os.path.realpath(path))  # of a link, what it leads to is replaced
        written = real if is_special else real.with_name(f".{real.name}.{os.getpid()}.tmp")
        file = written.open("wb")
    except OSError as error:
        raise UsageError(f"--to {path} cannot be written: {error.strerror or error}. Name another file.") from None
    try:
        with _writing(f"--to {path}"), file:
            yield file
            file.flush()
            if not is_special:
                os.fsync(file.fileno())
                written.replace(real)
                fsync_dir(real.parent)
    finally:
        if not is_special:
            written.unlink(missing_ok=True)


def _check(path: Path, run_dir: Path, *, force: bool) -> None:
    real = Path(os.path.realpath(path))
    if real.is_dir():
        raise UsageError(f"--to {path} is a directory. Name a file.")
    if real.is_relative_to(os.path.realpath(run_dir)):
        raise UsageError(
            f"--to {path} is in the run directory, which holds the run's own files only. Name another place."
        )
    if not real.parent.is_dir():
        raise UsageError(f"--to {path}: there is no directory {path.parent}.")
    if real.exists() and not force:
        raise UsageError(f"--to {path} exists. Name another file, or give --force to replace it.")


@contextlib.contextmanager
def _writing(name: str) -> Iterator[None]:
    """Tell what the disk says. (A part that cannot be read is a JobError already.)"""
    try:
        yield
    except BrokenPipeError:  # whoever reads has enough: click ends the program without a word
        raise
    except OSError as error:
        raise JobError(f"{name} cannot be written: {error.strerror or error}.") from None


@contextlib.contextmanager
def standard_output(stream: BinaryIO) -> Iterator[BinaryIO]:
    """Write to standard output, in full.

    Raises:
        JobError: it cannot be written.
    """
    with _writing("Standard output"):
        yield stream
        stream.flush()
