"""Options that take a text, or the path of a file with it."""

import contextlib
from collections.abc import Callable
from pathlib import Path

from job.errors import UsageError, first_line


def read_text_or_file(
    option: str,
    value: str,
    *,
    looks_like_text: Callable[[str], bool],
    example: str,
    drops_last_newline: bool = False,
) -> str:
    """Return the text of an option: what is in the file that the value names, else the value itself.

    Args:
        option: as the user typed it, such as ``--grammar``.
        looks_like_text: whether a value that names no file can be meant as the text. Without this test, the misspelt
            name of a file would be the text.
        example: of such a text, for the message: ``a grammar, such as 'start: /[a-z]+/'``.
        drops_last_newline: whether the end of a file's last line, which editors write, is not part of the text.

    Raises:
        UsageError: the file cannot be read, or the value is neither.
    """
    if _is_file(value):
        try:
            text = Path(value).read_text(encoding="utf-8-sig")
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) and error.strerror else first_line(error)
            raise UsageError(f"{option} {value}: the file cannot be read as UTF-8 text: {reason}.") from None
        return text.removesuffix("\n") if drops_last_newline else text
    if not looks_like_text(value):
        raise UsageError(f"{option} {value!r} is neither a file nor {example}.")
    return value


def _is_file(value: str) -> bool:
    with contextlib.suppress(OSError, ValueError):  # too long for a name, or with a NUL in it: no file
        return Path(value).is_file()
    return False
