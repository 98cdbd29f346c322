"""The exceptions of ``job``, and their exit codes.

Only ``cli`` turns them into text and exit codes. Any other exception is a bug and keeps its traceback.

    JobError                 1  the run failed after it had started
     +- UsageError           2  the user asked for something impossible; nothing was started
     +- PeerFailed         any  another process of the launch has failed and reported why
"""

EXIT_DONE = 0
EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_TOO_MANY_ERRORS = 3
EXIT_STOPPED = 75


class JobError(Exception):
    """The run failed. The message is one line: what was wrong, the limit, what to do."""

    exit_code = EXIT_FAILED


class UsageError(JobError):
    """The configuration, the data or the model cannot work as asked. Raised before any weights are loaded."""

    exit_code = EXIT_USAGE


class PeerFailed(JobError):
    """Another process of the launch failed. That one prints the error; this one only exits with the same code."""

    def __init__(self, exit_code: int) -> None:
        """Exit with the code of the process that failed."""
        super().__init__(f"another process of this launch failed with exit code {exit_code}")
        self.exit_code = exit_code


def require(condition: bool, option: str, value: object, need: str) -> None:
    """Check the value of an option.

    Raises:
        UsageError: the condition does not hold; the message names the option, the value and what it must be.
    """
    if not condition:
        raise UsageError(f"--{option} is {value!r}; it must be {need}.")


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or its class if that is empty: libraries write paragraphs.

    >>> first_line(OSError("no such file\\nsee also ...")), first_line(ValueError())
    ('no such file', 'ValueError')
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def shorten(value: object) -> str:
    """Return a value as text for a message: on one line, at most 80 characters."""
    text = " ".join(str(value).split())
    return text if len(text) <= 80 else f"{text[:77]}..."
