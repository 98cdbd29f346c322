"""One row of a run as JSON values for a page: texts that are not too long, and numbers that a person can read."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from job.output.parts.manifest import Manifest
from job.output.parts.part_schema import BASE, Columns
from job.report.label_source import labels_of

MAX_TEXT = 4_000
"""Characters of one text; of a longer one, the beginning and the end."""

MAX_VALUE = 400
"""Characters of a value of any other column."""

MAX_NUMBERS = 8
"""Of a longer list of numbers, such as a vector, only these are shown."""

MAX_COLUMNS = 100
"""Columns of the dataset that are shown."""

TEXTS = ("prompt", "reasoning", "completion", "error")
"""Columns that are shown in full."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RowTexts:
    """Makes texts of the rows of one run."""

    known: frozenset[str]
    """The run's own columns; all others are the dataset's."""
    classes_of: Mapping[str, Sequence[str]]
    """The columns with a probability of each class, and the classes."""

    @classmethod
    def of(cls, manifest: Manifest) -> "RowTexts":
        """Return those of a run."""
        classes = {column.probs: column.classes for column in labels_of(manifest) if column.probs and column.classes}
        return cls(known=Columns.of(manifest).names, classes_of=classes)

    def to_json(self, row: Mapping[str, Any], why: str) -> dict[str, Any]:
        """Return a row: the columns of ``TEXTS`` and ``BASE``, ``why`` it was chosen, and as texts the run's other
        columns (``more``) and those of the dataset (``kept``). Nulls of these two are left out."""
        shown = {name: row[name] for name in BASE.names if name in row and name != "error_kind"}
        shown |= {name: row[name] for name in TEXTS if name in row and name in self.known}
        others = {name: value for name, value in row.items() if name not in shown and value is not None}
        kept = [name for name in others if name not in self.known]
        return {
            **{name: shorten(value, MAX_TEXT) if isinstance(value, str) else value for name, value in shown.items()},
            "why": why,
            "more": {
                name: self._result(name, value)
                for name, value in others.items()
                if name in self.known and name != "error_kind"
            },
            "kept": {
                **{shorten(name, MAX_VALUE): _as_text(others[name]) for name in kept[:MAX_COLUMNS]},
                **({"…": f"{len(kept) - MAX_COLUMNS:,} more columns"} if len(kept) > MAX_COLUMNS else {}),
            },
        }

    def _result(self, name: str, value: Any) -> str:
        if isinstance(value, float):
            return f"{value:.6g}"
        if not isinstance(value, list) or not value or not all(isinstance(each, int | float) for each in value):
            return _as_text(value)
        classes = self.classes_of.get(name, ())
        if len(classes) == len(value):
            pairs = sorted(zip(classes, value, strict=True), key=lambda pair: -pair[1])
            return shorten(", ".join(f"{text.strip()} {share:.4g}" for text, share in pairs), MAX_VALUE)
        text = ", ".join(f"{each:.6g}" if isinstance(each, float) else str(each) for each in value[:MAX_NUMBERS])
        return text if len(value) <= MAX_NUMBERS else f"{text}, ... ({len(value):,} numbers)"


def _as_text(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return shorten(text, MAX_VALUE)


def shorten(text: str, max_characters: int) -> str:
    """Leave out the middle of a text that is too long, and say so.

    >>> shorten("a" * 10, 4)
    'aaa\\n[6 characters are not shown here]\\na'
    """
    if len(text) <= max_characters:
        return text
    head = max_characters * 3 // 4
    tail = max_characters - head
    return f"{text[:head]}\n[{len(text) - head - tail:,} characters are not shown here]\n{text[-tail:]}"
