"""The summary that is printed on stdout at the end of a run."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from job.observe.status import Published
from job.observe.text import describe_errors, format_secs, list_kinds, number, visible


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """The whole run in numbers, and this launch's share of the time."""

    parts: str
    """Where the parts lie, as a pattern."""
    num_parts: int
    num_rows: int
    """Output rows, as all numbers of rows here."""
    num_samples: int
    """Output rows of each row of the dataset."""
    errors: Mapping[str, int]
    """Error kind to number of rows, over the whole run."""
    first_errors: Mapping[str, tuple[int, str]]
    """Error kind to the lowest row index that has it, and its detail."""
    outcome: Sequence[tuple[str, str]]
    """What came out, as the run's modes describe it: titles and lines."""
    published: Published | None
    num_prompt_tokens: int
    num_completion_tokens: int
    num_launch_rows: int
    """Rows finished by this launch."""
    num_launch_tokens: int
    """Prompt and completion tokens computed by this launch."""
    num_launch_completion_tokens: int
    """Completion tokens of the rows that this launch finished; copies of a prompt are not computed again."""
    compute_secs: float
    """Seconds that this launch took after loading the model."""
    secs: Mapping[str, float]
    """Activity to seconds, on the process that prints the summary."""
    total_secs: float

    def __str__(self) -> str:
        """Return the summary as several lines of text."""
        num_errors = sum(self.errors.values())
        rate = self.num_launch_tokens / self.compute_secs if self.compute_secs else 0.0
        written_rate = self.num_launch_completion_tokens / self.compute_secs if self.compute_secs else 0.0
        rows_rate = self.num_launch_rows / self.compute_secs if self.compute_secs else 0.0
        spent = {**self.secs, "other": max(0.0, self.total_secs - sum(self.secs.values()))}
        noun = "row" if self.num_samples == 1 else "sample"
        of_rows = "" if self.num_samples == 1 else f" of {number(self.num_rows // self.num_samples, 'row')}"
        means = [total / max(1, self.num_rows) for total in (self.num_prompt_tokens, self.num_completion_tokens)]
        facts = [
            ("errors", f"{num_errors:,}{list_kinds(self.errors)}"),
            *(("", f"  {line}") for line in describe_errors(self.errors, self.first_errors)),
            *self.outcome,
            (
                "tokens",
                f"{self.num_prompt_tokens:,} prompt, {self.num_completion_tokens:,} completion "
                f"(mean {means[0]:,.0f} and {means[1]:,.0f})",
            ),
            (
                "this launch",
                f"{number(self.num_launch_rows, noun)}, {rows_rate:,.1f} a second, "
                f"{rate:,.0f} tokens/s computed, {written_rate:,.0f} completion tokens/s written",
            ),
            (
                "time",
                f"{format_secs(self.total_secs)}: "
                + ", ".join(f"{name} {format_secs(secs)}" for name, secs in spent.items()),
            ),
            *([] if self.published is None else [("published", self.published.describe(self.num_parts))]),
        ]
        return "\n".join(
            [
                f"{number(self.num_rows, noun)}{of_rows} in {number(self.num_parts, 'part')}: {self.parts}",
                *(f"  {title:<11} {visible(line)}" for title, line in facts),
            ]
        )
