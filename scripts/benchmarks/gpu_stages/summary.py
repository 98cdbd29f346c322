"""The summary: what was measured beside what was expected, as Markdown."""

from collections.abc import Sequence
from typing import Any

from .figures import Figures
from .running import Outcome

LONGEST_CELL = 120


def summary(outcomes: Sequence[Outcome], figures: Sequence[Figures], left_out: Sequence[str]) -> str:
    """Return a table of each stage's figures, in the order of the stages."""
    parts = ["# Figures of this card"]
    for outcome in outcomes:
        parts.append(f"## {outcome.state}\n\n{outcome.stage.finds}")
        own = [line for line in figures if line.stage == outcome.stage.name]
        if own:
            parts.append(_table(own))
        if outcome.problem is not None:
            parts.append(f"```\n{outcome.tail}\n```")
    if left_out:
        parts.append(f"## No time left for\n\n{', '.join(left_out)}")
    return "\n\n".join(parts) + "\n"


def _table(own: Sequence[Figures]) -> str:
    """Return one row for each figure: the tables of most stages would be too wide the other way."""
    lines = ["| case | figure | measured | expected | measured / expected |", "|---|---|---|---|---|"]
    for line in own:
        for name, value in line.measured.items():
            expected = line.expected.get(name)
            ratio = value / expected if expected and isinstance(value, int | float) else None
            cells = (line.case, name, value, expected, ratio and f"{ratio:.2f}")
            lines.append("| " + " | ".join(map(_cell, cells)) + " |")
    return "\n".join(lines)


def _cell(value: Any) -> str:
    if value is None or value == []:
        return ""
    if isinstance(value, float):
        return f"{value:,.4g}" if abs(value) < 1e4 else f"{value:,.0f}"
    return str(value).replace("|", "/").replace("\n", " ")[:LONGEST_CELL]
