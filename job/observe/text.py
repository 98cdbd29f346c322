"""Figures as people read them."""


def format_secs(secs: float) -> str:
    """Return a duration as people say it.

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
