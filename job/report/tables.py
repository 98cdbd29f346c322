"""Numbers with intervals, and tables of them, as text for a terminal."""

import math
from collections.abc import Sequence

from job.report.intervals import Estimate

LONG_NAME = 16
"""How many characters of a class's name a table shows."""


def table_of(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return lines with columns of equal width, the first aligned to the left."""
    widths = [max(len(row[idx]) for row in (header, *rows)) for idx in range(len(header))]
    lines = []
    for first, *cells in (header, *rows):
        aligned = [cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True)]
        lines.append("  " + "  ".join([first.ljust(widths[0]), *aligned]))
    return lines


def percent(share: Estimate) -> str:
    """Return a share in percent."""
    if math.isnan(share.value):
        return "-"
    interval = "" if math.isnan(share.low) else f" [{100 * share.low:.1f}, {100 * share.high:.1f}]"
    return f"{100 * share.value:.1f} %{interval}"


def plain(found: Estimate) -> str:
    """Return a number."""
    if math.isnan(found.value):
        return "-"
    return f"{found.value:.3f}" + ("" if math.isnan(found.low) else f" [{found.low:.3f}, {found.high:.3f}]")


def points(found: Estimate) -> str:
    """Return a difference of two shares in points of a hundred."""
    interval = "" if math.isnan(found.low) else f" [{100 * found.low:+.1f}, {100 * found.high:+.1f}]"
    return f"{100 * found.value:+.1f}{interval}"
