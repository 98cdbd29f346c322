"""The exceptions of the job, and the exit code that each stands for.

Only ``cli`` turns them into text and exit codes. An exception that is not one of these is a bug and keeps its
traceback.

    JobError                 1  the run failed while it was going
     +- UsageError           2  the user asked for something impossible; nothing was started
     +- PeerFailed        any  another process of the launch has failed, and has said why
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
    """Another process of the launch failed. It tells the user; this one only leaves with the same exit code."""

    def __init__(self, exit_code: int) -> None:
        """Take over the other's exit code."""
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
    """Return the first line of an error's text, or its class if it has none: libraries write paragraphs.

    >>> first_line(OSError("no such file\\nsee also ...")), first_line(ValueError())
    ('no such file', 'ValueError')
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def shorten(value: object) -> str:
    """Quote a value in a message, on one line, cut short."""
    text = " ".join(str(value).split())
    return text if len(text) <= 80 else f"{text[:77]}..."
