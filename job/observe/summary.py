"""The summary that is printed on stdout at the end of a run."""

from collections.abc import Mapping
from dataclasses import dataclass

from job.observe.text import format_secs


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """The whole run in numbers, and this launch's share of the time."""

    parts: str
    """Where the parts lie, as a pattern."""
    num_parts: int
    num_rows: int
    errors: Mapping[str, int]
    """Error kind to number of rows, over the whole run."""
    num_prompt_tokens: int
    num_completion_tokens: int
    num_launch_rows: int
    """Rows finished by this launch."""
    num_launch_tokens: int
    """Tokens computed by this launch."""
    compute_secs: float
    """Seconds that this launch took after loading the model."""
    secs: Mapping[str, float]
    """Activity to seconds, on the process that prints the summary."""
    total_secs: float

    def __str__(self) -> str:
        """Return the summary as several lines of text."""
        num_errors = sum(self.errors.values())
        kinds = ", ".join(f"{kind} {num:,}" for kind, num in sorted(self.errors.items(), key=lambda item: -item[1]))
        rate = self.num_launch_tokens / self.compute_secs if self.compute_secs else 0.0
        spent = {**self.secs, "other": max(0.0, self.total_secs - sum(self.secs.values()))}
        parts = "1 part" if self.num_parts == 1 else f"{self.num_parts:,} parts"
        lines = [
            f"{self.num_rows:,} rows in {parts}: {self.parts}",
            f"  errors      {num_errors:,}{f'  ({kinds})' if kinds else ''}",
            f"  tokens      {self.num_prompt_tokens:,} prompt, {self.num_completion_tokens:,} completion",
            f"  this launch {self.num_launch_rows:,} rows, {rate:,.0f} tokens/s (prompt and completion)",
            f"  time        {format_secs(self.total_secs)}: "
            + ", ".join(f"{name} {format_secs(secs)}" for name, secs in spent.items()),
        ]
        return "\n".join(lines)
