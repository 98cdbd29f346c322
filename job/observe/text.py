"""Numbers in the form that people read them."""

from collections.abc import Sequence

MAX_SHOWN = 8


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
