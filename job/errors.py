"""The exceptions of ``job``, and their exit codes.

Only ``cli`` turns them into text and exit codes. Any other exception is a bug and keeps its traceback.

    JobError                 1  the run failed after it had started
     +- UsageError           2  the user asked for something impossible; nothing was started
     +- Unavailable          1  the Hub or a store did not answer for too long; the same command may work later
     +- PeerFailed         any  another process of the launch has failed and reported why
"""

import itertools
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from job.wording import redacted

EXIT_DONE = 0
EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_TOO_MANY_ERRORS = 3
EXIT_LIMIT = 4
EXIT_STOPPED = 75

MAX_REASON_CHARACTERS = 400
"""How much of a library's message is shown: some list every file name ending that they know."""


_places: dict[str, str] = {}


def call_place(directory: Path, name: str) -> None:
    """From now on, let messages say ``name`` where they would name a directory of a cache.

    Files that were fetched are read like any others, by code that does not know where they come from.
    """
    _places.update({str(directory): name, str(directory.resolve()): name})


def in_users_words(text: str) -> str:
    """Return a message with the names of places that the user knows.

    >>> call_place(Path("/cache/datasets--org--name/snapshots/0123"), "org/name")
    >>> in_users_words("/cache/datasets--org--name/snapshots/0123/a.jsonl: a bad line")
    'org/name/a.jsonl: a bad line'
    """
    for place, name in _places.items():
        text = text.replace(place, name)
    return text


class JobError(Exception):
    """The run failed. The message is one line: what was wrong, the limit, what to do."""

    exit_code = EXIT_FAILED

    def __str__(self) -> str:
        return in_users_words(super().__str__())


class UsageError(JobError):
    """The configuration, the data or the model cannot work as asked. Raised before any weights are loaded."""

    exit_code = EXIT_USAGE


class InvalidValue(UsageError):
    """The value of an option is not one that it may have."""

    def __init__(self, option: str, value: object, need: str) -> None:
        """Name the option, the value and what it must be."""
        super().__init__(f"--{option} is {value!r}; it must be {need}.")
        self.option, self.need = option, need


class RunDiffers(UsageError):
    """The run directory holds another run than the one that is asked for."""


class NoEffect(UsageError):
    """Options were given that cannot have an effect, or whose values nobody can mean."""


class NoRows(UsageError):
    """Files have no rows, so they may not show which columns there are."""


class Unavailable(JobError):
    """A server did not answer for too long. Nothing is lost; the same command may work later.

    The scripts for Slurm put the job back into the queue for this alone among the failures, so they ask for an exit
    code of its own.
    """

    def __init__(self, message: str) -> None:
        """Fail with the exit code that the environment asks for."""
        super().__init__(message)
        self.exit_code = int(os.environ.get("JOB_EXIT_UNAVAILABLE") or EXIT_FAILED)


class PeerFailed(JobError):
    """Another process of the launch failed. That one prints the error; this one only exits with the same code."""

    def __init__(self, exit_code: int) -> None:
        """Exit with the code of the process that failed."""
        super().__init__(f"another process of this launch failed with exit code {exit_code}")
        self.exit_code = exit_code


@dataclass(frozen=True, slots=True)
class Doubt:
    """What the user can hardly have meant. A new run is refused for it; an older run goes on, and says it."""

    problem: str
    """Without a full stop."""
    remedy: str | None = None
    """None: it may be meant, so a note is enough."""

    def __str__(self) -> str:
        remedy = self.remedy or ""
        return f"{self.problem}. {remedy}{'' if remedy.endswith(('?', '.')) else '.'}" if remedy else f"{self.problem}."


def require(condition: bool, option: str, value: object, need: str) -> None:
    """Check the value of an option.

    Raises:
        InvalidValue: the condition does not hold.
    """
    if not condition:
        raise InvalidValue(option, value, need)


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or its class if that is empty: libraries write paragraphs.

    Secrets are left out, as libraries write whole addresses. A line that ends with a colon goes on in the lines that
    follow it.

    >>> first_line(OSError("no such file\\nsee also ...")), first_line(ValueError())
    ('no such file', 'ValueError')
    >>> first_line(ValueError("Needs one of:\\n(1) a file,\\n(2) a name.\\n\\nSee ..."))
    'Needs one of: (1) a file, (2) a name.'
    """
    lines = [line.strip() for line in redacted(str(error)).strip().splitlines()]
    if not lines:
        return type(error).__name__
    if lines[0].endswith(":") and len(lines) > 1:
        paragraph = itertools.takewhile(bool, itertools.dropwhile(lambda line: not line, lines[1:]))
        return shorten(" ".join([lines[0], *paragraph]), MAX_REASON_CHARACTERS)
    return lines[0]


@contextmanager
def reading(file: str) -> Iterator[None]:
    """Name the file in any exception from inside: libraries often say what is wrong, but not where."""
    try:
        yield
    except Exception as error:
        error.add_note(file)
        raise


def is_foreign(error: Exception) -> bool:
    """Whether the data or the system caused an exception, rather than a bug in ``job``.

    A list of exceptions by name is never complete: libraries raise any. What counts is where it was raised: outside of
    this package. System calls are made everywhere, and an ``OSError`` is never a bug.
    """
    traceback, module = error.__traceback__, ""
    while traceback is not None:
        module, traceback = traceback.tb_frame.f_globals.get("__name__", ""), traceback.tb_next
    return isinstance(error, OSError) or module.partition(".")[0] != "job"


def unread_reason(error: BaseException) -> str:
    """Return why a file cannot be read, for a message that names the file: without its name, number and full stop.

    >>> unread_reason(PermissionError(13, "Permission denied", "/a")), unread_reason(ValueError("No footer."))
    ('Permission denied', 'No footer')
    """
    return (error.strerror if isinstance(error, OSError) else None) or first_line(error).rstrip(".")


def explain(error: BaseException, named: str = "") -> str:
    """Return the root cause of a library's error in one line, with the file that ``reading`` has named.

    Args:
        named: a file that the message names anyway.
    """
    files = [*getattr(error, "__notes__", ())]
    while error.__cause__ is not None:  # datasets wraps errors: the root cause names the file and the line
        error = error.__cause__
        files += getattr(error, "__notes__", ())
    reason = shorten(first_line(error), MAX_REASON_CHARACTERS)
    if isinstance(error, OSError) and error.strerror:
        reason = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    is_known = not files or reason.startswith(files[0]) or Path(files[0]).absolute() == Path(named).absolute()
    return reason if is_known else f"{files[0]}: {reason}"


def shorten(value: object, max_characters: int = 80) -> str:
    """Return a value as text for a message: on one line, not too long, and without what would steer a terminal.

    >>> shorten("a\\tb\\n\\033[2Jc", 11)
    'a b \\\\x1b[2Jc'
    """
    text = " ".join(str(value).split())
    text = text if len(text) <= max_characters else f"{text[: max_characters - 3]}..."
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)


def reason_of(error: BaseException) -> str:
    """Return the message of an error that a template has raised, on one line: it is written for the user."""
    return f"{type(error).__name__}: {shorten(error, MAX_REASON_CHARACTERS)}"
