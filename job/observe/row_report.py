"""A row of the output as text for people."""

import textwrap
from collections.abc import Mapping
from typing import Any

from job.observe.text import number, visible
from job.records import Completion

IN_HEADLINE = ("row_idx", "sample_idx", "finish_reason", "num_prompt_tokens", "num_completion_tokens", "error_kind")

MAX_CHARS = 2000
"""Of longer values, only so much is shown, unless all is asked for."""

MIN_WIDTH = 20

BRIEF_CHARS = 100
"""How much of a prompt, and of a completion, is shown on one line."""


def describe_row(
    row: Mapping[str, Any], cells: Mapping[str, str | None], *, num_samples: int, width: int, in_full: bool
) -> str:
    """Return a row as text, without columns that are null.

    Args:
        row: column to its value.
        cells: the same as text.
        num_samples: how many samples each row of the run has.
        width: of the terminal.
        in_full: whether long values are shown in full.
    """
    shown = {name: value for name, value in cells.items() if name not in IN_HEADLINE and value is not None}
    indent = max(map(len, shown), default=0) + 2
    lines = [_headline(row, num_samples)]
    for name, value in shown.items():
        text = value if in_full or len(value) <= MAX_CHARS else f"{value[:MAX_CHARS]} ... ({len(value):,} characters)"
        wrapped = _wrap(visible(text), max(MIN_WIDTH, width - indent - 4))
        lines += [f"  {name if at == 0 else '':<{indent}}| {line}" for at, line in enumerate(wrapped)]
    return "\n".join(lines)


def describe_briefly(row: Completion) -> str:
    """Return a row on one line: the end of its prompt, and the start of its completion.

    >>> describe_briefly(Completion(row_idx=7, sample_idx=0, prompt="Is 2\\n even?", completion="Yes.", error=None,
    ...                             finish_reason="stop", num_prompt_tokens=5, num_completion_tokens=2))
    'row 7 (stop): Is 2 even? => Yes.'
    """
    prompt, completion = (" ".join(visible(text or "").split()) for text in (row.prompt, row.completion))
    start = f"... {prompt[-BRIEF_CHARS:]}" if len(prompt) > BRIEF_CHARS else prompt
    end = f"{completion[:BRIEF_CHARS]} ..." if len(completion) > BRIEF_CHARS else completion
    return f"row {row.row_idx} ({row.finish_reason}): {start} => {end}"


def _headline(row: Mapping[str, Any], num_samples: int) -> str:
    sample = "" if num_samples == 1 else f", sample {row['sample_idx']}"
    reason = "error" if row["finish_reason"] is None else row["finish_reason"]
    tokens = f"{row['num_prompt_tokens']} + {number(row['num_completion_tokens'], 'token')}"
    return f"row {row['row_idx']}{sample}: {reason}, {tokens}"


def _wrap(text: str, width: int) -> list[str]:
    """Return lines of at most this many characters, with the line breaks of the text.

    >>> _wrap("a b c\\n\\n  d", 3)
    ['a b', 'c', '', '  d']
    """
    return [
        piece
        for line in text.split("\n")
        for piece in textwrap.wrap(line, width, replace_whitespace=False, break_on_hyphens=False) or [""]
    ]
