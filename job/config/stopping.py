"""Where a launch stops early: what ``--stop-after`` says, read into a value. Reads no files."""

import math
import re
from dataclasses import dataclass

from job.errors import InvalidValue

FLAG = "stop-after"

NEED = "rows (10000, 10k rows, 5%), tokens (5M tokens) or a time (90m, 2h)"

MULTIPLIERS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "b": 10**9, "thousand": 10**3, "million": 10**6}

SECS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
"""By the first letter of a unit of time."""

TIME_UNIT = re.compile(r"s|secs?|seconds?|m|mins?|minutes?|h|hrs?|hours?|d|days?", re.ASCII)
CLOCK = re.compile(r"(\d+):(\d\d):(\d\d)", re.ASCII)
NUMBER = re.compile(r"(\d+(?:\.\d+)?|\.\d+)\s*([a-z%]*)\s*", re.ASCII)
COUNTED = re.compile(r"(?P<times>k|m|g|b|thousand|million|)\s*(?P<unit>rows?|tokens?|tok|)", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class Bound:
    """Where to stop: exactly one of the values is given."""

    text: str
    """As it was typed."""
    rows: int | None = None
    """Rows of the dataset that are finished, in the whole run."""
    share: float | None = None
    """The same, as a share of all rows."""
    tokens: int | None = None
    """Prompt and completion tokens of the finished rows of the whole run."""
    secs: float | None = None
    """Of computing, in this launch."""

    def num_rows(self, total: int) -> int | None:
        """Return the number of rows, of a run with ``total``; None if it is not rows that are counted.

        >>> read_bound("5%").num_rows(1010), read_bound("10k").num_rows(200), read_bound("2h").num_rows(200)
        (51, 200, None)
        """
        if self.share is not None:
            return math.ceil(round(total * self.share, 6))
        return None if self.rows is None else min(self.rows, total)


def read_bound(text: str) -> Bound:
    """Read what was typed.

    Raises:
        InvalidValue: it is not a number of rows or tokens above 0, nor a time.

    >>> read_bound("10k rows").rows, read_bound("5M tokens").tokens, read_bound("1h30m").secs, read_bound("2.5%").share
    (10000, 5000000, 5400.0, 0.025)
    """
    plain = re.sub(r"(?<=\d)[,_](?=\d{3}(?!\d))", "", text.strip())
    if re.fullmatch(r"[\d.]+ *M", plain):  # a million of what, or minutes
        raise InvalidValue(FLAG, text, f"{plain} rows, {plain} tokens, or {plain.lower()} for minutes")
    secs = _time(plain.lower())
    bound = Bound(text=text, secs=secs) if secs is not None else _count(text, plain.lower())
    if bound is None or not any((bound.rows, bound.share, bound.tokens, bound.secs)):
        raise InvalidValue(FLAG, text, f"{'' if bound is None else 'more than 0: '}{NEED}")
    return bound


def _time(text: str) -> float | None:
    """Return seconds; None if the text is not a time."""
    if clock := CLOCK.fullmatch(text):
        hours, minutes, secs = map(int, clock.groups())
        return float(3600 * hours + 60 * minutes + secs)
    pieces = NUMBER.findall(text)
    is_time = pieces and all(TIME_UNIT.fullmatch(unit) for _, unit in pieces) and not NUMBER.sub("", text)
    return sum(float(number) * SECS[unit[0]] for number, unit in pieces) if is_time else None


def _count(text: str, plain: str) -> Bound | None:
    """Return a bound of rows or tokens; None if the text is none."""
    if share := re.fullmatch(r"([\d.]+)\s*%(\s*(of )?\s*(the |all )?\s*rows)?", plain, re.ASCII):
        number = _number(share[1])
        return None if number is None or number > 100 else Bound(text=text, share=number / 100)
    match = NUMBER.match(plain)
    counted = match and COUNTED.fullmatch(plain[match.end(1) :].strip())
    if not match or not counted or (counted["times"] == "m" and not counted["unit"]):
        return None
    number = float(match[1]) * MULTIPLIERS[counted["times"]]
    if not number.is_integer():  # infinity, which hundreds of digits make, is not one, either
        return None
    return Bound(text=text, tokens=int(number)) if counted["unit"][:1] == "t" else Bound(text=text, rows=int(number))


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
