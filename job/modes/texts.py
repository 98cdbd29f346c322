"""Texts that an option gives directly or as the name of a file. Files are UTF-8, with or without a byte order mark."""

import contextlib
import re
from collections.abc import Callable
from pathlib import Path

from job.errors import UsageError


def expand_home(value: str) -> str:
    """Return a path with the home directory in place of a leading ``~``: not every shell expands it everywhere."""
    if not value.startswith("~"):
        return value
    with contextlib.suppress(RuntimeError):  # the user has no home
        return str(Path(value).expanduser())
    return value


def names_file(value: str) -> bool:
    """Whether a value is the name of a file."""
    with contextlib.suppress(OSError, ValueError):  # too long for a file name, so it is not one
        return Path(expand_home(value)).is_file()
    return False


def read_text_or_file(
    option: str, value: str, *, is_text: Callable[[str], bool], example: str, drops_last_newline: bool = False
) -> str:
    """Return ``value``, or the text of the file that it names.

    Args:
        option: its name, for messages.
        is_text: whether a value that does not name a file can be such a text. Without this test, a misspelled file name
            would be taken as the text.
        example: an example of such a text, to end the sentence "... is neither a file nor".
        drops_last_newline: whether to drop the newline that editors write at the end of a file.

    Raises:
        UsageError: it is neither, or the file cannot be read.
    """
    if names_file(value):
        text = read_text(option, expand_home(value))
        return text.removesuffix("\n") if drops_last_newline else text
    if not is_text(value):
        raise UsageError(f"{option} {value!r} is neither a file nor {example}.")
    return value


def read_template(value: str) -> str:
    """Return the template that ``--prompt-template`` gives or names."""
    return read_text_or_file(
        "--prompt-template",
        value,
        is_text=lambda text: "\n" in text or "{" in text,
        example="a template, such as '{{ text }}'",
        drops_last_newline=True,  # a prompt that ends in it reads otherwise
    )


def read_chat_template(value: str) -> str:
    """Return the chat template that ``--chat-template`` gives or names."""
    template = read_text_or_file(
        "--chat-template",
        value,
        is_text=lambda text: "{{" in text or "{%" in text,
        example="a chat template, which has {{ ... }} in it",
    )
    if not template.strip():
        raise UsageError(f"--chat-template {value!r} is an empty file. Use --no-chat for prompts without a template.")
    return template


def read_system_prompt(value: str) -> str:
    """Return the text that ``--system-prompt`` gives or names."""
    return _read_words("--system-prompt", value)


def read_prefill(value: str) -> str:
    """Return the text that ``--prefill`` gives or names."""
    return _read_words("--prefill", value)


def read_examples(path: str) -> str:
    """Return the text of the file that ``--examples`` names."""
    return read_text("--examples", path)


def read_text(option: str, path: str) -> str:
    """Return the text of a file.

    Raises:
        UsageError: it cannot be read, or is not UTF-8.
    """
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or error
        raise UsageError(f"{option} {path!r} cannot be read: {reason}.") from None


def read_lines(option: str, path: str) -> tuple[str, ...]:
    """Return the lines of a file, without blank ones at its end.

    Raises:
        UsageError: it cannot be read, or is not UTF-8.
    """
    lines = [line.removesuffix("\r") for line in read_text(option, path).split("\n")]
    while lines and not lines[-1].strip():
        lines.pop()
    return tuple(lines)


def read_delimiter(value: str) -> str:
    """Return the character that ``--csv-delimiter`` gives or names.

    >>> read_delimiter(";"), read_delimiter("tab")
    (';', '\\t')
    """
    return "\t" if value.lower() in ("tab", "\\t") else value


def is_encoding(name: str) -> bool:
    """Whether it is the name of an encoding of text, not of bytes such as base64."""
    try:
        "".encode(name)
    except LookupError:
        return False
    return True


def _read_words(option: str, value: str) -> str:
    """Return a text that may be anything but what looks like the name of a file."""
    return read_text_or_file(
        option,
        value,
        is_text=lambda text: re.fullmatch(r"\S*[\w-]\.(txt|md|jinja|jinja2|j2|prompt|system)", text) is None,
        example="a text",
        drops_last_newline=True,
    )
