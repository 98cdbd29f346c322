"""The last match of a regular expression in each text of a column.

Arrow searches with RE2, whose time explodes with no pattern. That of Python's ``re`` may, and one text would hold up a
run for years. In exchange, RE2 has neither look-around nor back references.
"""

import functools

import pyarrow as pa
import pyarrow.compute as pc

from job.errors import UsageError, first_line

_MARKS = range(0xF0000, 0xFFFFE)
"""Characters for private use: one that no text contains can mark where a match begins and ends."""


def check_pattern(option: str, pattern: str) -> None:
    """Check that a regular expression can be searched for.

    Raises:
        UsageError: it cannot.
    """
    try:
        _searched_group(pattern)
    except pa.ArrowInvalid as error:
        reason = first_line(error).removeprefix("Invalid regular expression: ")
        raise UsageError(
            f"{option} {pattern!r} is not a regular expression: {reason}. It may have no look-around and no back "
            "references."
        ) from None


def last_matches(pattern: str, texts: pa.Array | pa.ChunkedArray) -> list[str | None]:
    """Return for each text the last match that is not blank, without the white space around it; None if there is none.

    If the pattern has groups, the first one is what counts of a match. Matches do not overlap.

    >>> last_matches(r"#### (-?[0-9]+)", pa.array(["#### 1, #### 23", "#### ?", None]))
    ['23', None, None]
    """
    mark = next(mark for mark in map(chr, _MARKS) if not pc.any(pc.match_substring(texts, mark)).as_py())
    found = pc.replace_substring_regex(texts, pattern, f"{mark}{_searched_group(pattern)}{mark}")
    # Every other piece between two marks is a match.
    return [None if text is None else _last(text.split(mark)[1::2]) for text in found.to_pylist()]


@functools.cache
def _searched_group(pattern: str) -> str:
    """Return how RE2 names what counts of a match: the first group, or all of it.

    Raises:
        pa.ArrowInvalid: it is not a regular expression.
    """
    for group in (r"\1", r"\0"):
        try:
            pc.replace_substring_regex(pa.array([""]), pattern, group)
            return group
        except pa.ArrowInvalid as error:
            if group == r"\0" or "Invalid replacement string" not in str(error):
                raise
    raise AssertionError("every expression has a group 0")


def _last(matches: list[str]) -> str | None:
    return next((text for match in reversed(matches) if (text := match.strip())), None)
