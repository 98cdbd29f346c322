"""Numbers and texts in the form that people read them."""

import re
from collections.abc import Mapping, Sequence

from job.wording import listed

MAX_SHOWN = 8

CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def visible(text: str) -> str:
    """Replace control characters other than tab and newline with escapes: a terminal would execute them.

    >>> visible("a\\tb\\r\\x1b[2J")
    'a\\tb\\\\r\\\\x1b[2J'
    """
    return CONTROL.sub(lambda match: repr(match[0])[1:-1], text)


def number(count: int, noun: str) -> str:
    """Return a number of things.

    >>> number(1, "row"), number(1234, "row"), number(2, "process")
    ('1 row', '1,234 rows', '2 processes')
    """
    return f"{count:,} {noun}{'' if count == 1 else 'es' if noun.endswith('s') else 's'}"


def list_kinds(errors: Mapping[str, int]) -> str:
    """Return error kinds in parentheses, the most frequent first.

    >>> list_kinds({"null_prompt": 1, "engine_error": 2}), list_kinds({})
    ('  (engine_error 2, null_prompt 1)', '')
    """
    kinds = sorted(errors.items(), key=lambda item: -item[1])
    return f"  ({', '.join(f'{kind} {count:,}' for kind, count in kinds)})" if kinds else ""


def describe_errors(errors: Mapping[str, int], first_errors: Mapping[str, tuple[int, str]]) -> list[str]:
    """Return a line for each kind of error, the most frequent first: the error of the first row that has it.

    >>> describe_errors({"null_prompt": 2}, {"null_prompt": (7, "column 'text' is null")})
    ["null_prompt, first in row 7: column 'text' is null"]
    """
    kinds = sorted(first_errors, key=lambda kind: -errors.get(kind, 0))
    firsts = ((kind, *first_errors[kind]) for kind in kinds)
    return [f"{kind}, first in row {row_idx}: {visible(' '.join(text.split()))}" for kind, row_idx, text in firsts]


def rows_text(rows: Sequence[int]) -> str:
    """Return a short list of row indices.

    >>> rows_text([7]), rows_text([3, 1, 2]), rows_text(range(100)), rows_text([])
    ('row 7', 'rows 1, 2, 3', 'rows 0, 1, 2, 3, 4, 5, 6, 7 and 92 more', 'no rows')
    """
    shown = ", ".join(map(str, sorted(rows)[:MAX_SHOWN]))
    more = f" and {len(rows) - MAX_SHOWN} more" if len(rows) > MAX_SHOWN else ""
    return f"row{'s' if len(rows) > 1 else ''} {shown}{more}" if rows else "no rows"


def format_secs(secs: float) -> str:
    """Return a duration in its two largest units.

    >>> format_secs(5), format_secs(65), format_secs(3_700), format_secs(100_000)
    ('5s', '1m05s', '1h01m', '1d03h')
    """
    minutes, rest = divmod(round(secs), 60)
    hours, minutes_rest = divmod(minutes, 60)
    if not minutes:
        return f"{rest}s"
    if not hours:
        return f"{minutes}m{rest:02d}s"
    return f"{hours}h{minutes_rest:02d}m" if hours < 24 else f"{hours // 24}d{hours % 24:02d}h"


def with_adapters(model: str, adapters: Sequence[str]) -> str:
    """Return the name of a model and those of its adapters.

    >>> with_adapters("org/model", []), with_adapters("org/model", ["a", "b"])
    ('org/model', 'org/model with a and b')
    """
    return f"{model} with {listed(adapters)}" if adapters else model
