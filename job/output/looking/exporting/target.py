"""The file that an export writes: it is complete or does not exist, and replaces no file by accident."""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import BinaryIO, NoReturn

from job.errors import JobError, UsageError
from job.output.store.files import fsync_dir


@contextlib.contextmanager
def new_file(path: Path, run_dir: Path | None, *, force: bool, option: str = "to") -> Iterator[BinaryIO]:
    """Open a file under another name in the same directory, and rename it once it is durable.

    A pipe or a device is written directly.

    Args:
        run_dir: the run directory, in which the file must not be; None if it is not on a disk.
        force: whether an older file may be replaced.
        option: what has named the file, for messages.

    Raises:
        UsageError: the file cannot be created.
        JobError: the file cannot be written in full; nothing is left of it.
    """
    try:
        is_special = path.exists() and not path.is_file() and not path.is_dir()
        if not is_special:
            _check(path, run_dir, f"--{option} {path}", force=force)
        real = path if is_special else Path(os.path.realpath(path))  # a link's target is replaced, not the link
        written = real if is_special else real.with_name(f".{real.name}.{os.getpid()}.tmp")
        file = written.open("wb")
    except OSError as error:
        raise UsageError(
            f"--{option} {path} cannot be written: {error.strerror or error}. Name another file."
        ) from None
    try:
        with _unwinding(), _writing(f"--{option} {path}"), file:
            yield file
            file.flush()
            if not is_special:
                os.fsync(file.fileno())
                written.replace(real)
                fsync_dir(real.parent)
    finally:
        if not is_special:
            written.unlink(missing_ok=True)


@contextlib.contextmanager
def _unwinding() -> Iterator[None]:
    """Let the end of a time limit or of a terminal remove what was written so far: it may be large, and its name is
    hidden. Not in a thread, which gets no signals, and not where a signal is ignored or has a handler."""

    def leave(number: int, frame: FrameType | None) -> NoReturn:
        raise SystemExit(128 + number)

    is_main = threading.current_thread() is threading.main_thread()
    ending = (signal.SIGTERM, signal.SIGHUP) if is_main else ()
    numbers = [number for number in ending if signal.getsignal(number) is signal.SIG_DFL]
    for number in numbers:
        signal.signal(number, leave)
    try:
        yield
    finally:
        for number in numbers:
            signal.signal(number, signal.SIG_DFL)


def _check(path: Path, run_dir: Path | None, named: str, *, force: bool) -> None:
    real = Path(os.path.realpath(path))
    if real.is_dir():
        raise UsageError(f"{named} is a directory. Name a file.")
    _check_outside(real, run_dir, named)
    if not real.parent.is_dir():
        raise UsageError(f"{named}: the directory {path.parent} does not exist. Create it, or name another place.")
    if real.exists() and not force:
        raise UsageError(f"{named} exists. Name another file, or give --force to replace it.")


def check_outside(path: Path, run_dir: Path | None, option: str) -> None:
    """Refuse a file in a run directory.

    Raises:
        UsageError: it is in this one.
    """
    _check_outside(Path(os.path.realpath(path)), run_dir, f"--{option} {path}")


def _check_outside(real: Path, run_dir: Path | None, named: str) -> None:
    if run_dir is not None and real.is_relative_to(os.path.realpath(run_dir)):
        raise UsageError(f"{named} is in the run directory, which holds the run's own files only. Name another place.")


@contextlib.contextmanager
def _writing(name: str) -> Iterator[None]:
    """Turn a failure to write into a JobError. (A part that cannot be read is one already.)"""
    try:
        yield
    except BrokenPipeError:  # the reader has seen enough: click ends the program silently
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
