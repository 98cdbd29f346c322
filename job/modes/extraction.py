"""Answer extraction: the part of each completion that counts, in a column of its own."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from job.errors import UsageError
from job.modes.mode import LabelColumn, Mode, Outcome
from job.modes.options import option
from job.modes.structured import StructuredMode
from job.records import Completion

if TYPE_CHECKING:
    import pyarrow as pa

    from job.config import RunConfig

ANSWER = "answer"
"""The column. ``aggregate`` votes on it."""

ANSWERS = "answers"
"""The name of its tally."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExtractionMode(Mode):
    """The answer in a completion: what a regular expression finds last, or a property of the JSON object."""

    name: ClassVar[str] = "extraction"

    extract: str | None = option(
        None,
        "Write the last match of this regular expression in each completion to the column 'answer': its first group, "
        "or all of it.",
        metavar="REGEX",
    )
    """RE2's syntax: no look-around, no back references. A match that is blank does not count."""
    extract_field: str | None = option(
        None, "With --json-schema: write this property of each object to the column 'answer'.", metavar="NAME"
    )

    def check(self, config: "RunConfig") -> None:
        """See ``Mode``."""
        if self.extract is not None and self.extract_field is not None:
            raise UsageError("--extract and --extract-field were given together. Give only one: there is one answer.")
        if self.extract is not None:
            from job.arrow.last_match import check_pattern

            if not self.extract:
                raise UsageError("--extract is ''; it must be a non-empty regular expression.")
            check_pattern("--extract", self.extract)
        else:
            self._check_field(config)

    def _check_field(self, config: "RunConfig") -> None:
        names = next((mode.properties() for mode in config.active_modes if isinstance(mode, StructuredMode)), None)
        if names is None:
            raise UsageError(f"--extract-field {self.extract_field!r} needs --json-schema. Give both, or --extract.")
        if self.extract_field not in names:
            there = f"Properties: {', '.join(names)}." if names else "It names none."
            raise UsageError(f"--extract-field {self.extract_field!r} is not a property of --json-schema. {there}")

    def accepts(self, completion: Completion) -> bool:
        """See ``Mode``."""
        return completion.error is not None or bool(self.derive([completion], {})[ANSWER].null_count == 0)

    def derived(self) -> "list[pa.Field]":
        """See ``Mode``."""
        import pyarrow as pa

        return [pa.field(ANSWER, pa.string())]

    def derive(self, completions: Sequence[Completion], earlier: "Mapping[str, pa.Array]") -> "Mapping[str, pa.Array]":
        """See ``Mode``."""
        import pyarrow as pa

        texts = pa.array([completion.completion for completion in completions], pa.string())
        return {ANSWER: self._answers(texts, [completion.finish_reason for completion in completions])}

    def _answers(self, texts: "pa.Array | pa.ChunkedArray", reasons: Sequence[str | None]) -> "pa.Array":
        """Return the answers in completions: [rows] string, null where there is none.

        Args:
            reasons: the finish reason of each.
        """
        import pyarrow as pa

        if self.extract is not None:
            from job.arrow.last_match import last_matches

            return pa.array(last_matches(self.extract, texts), pa.string())
        pairs = zip(texts.to_pylist(), reasons, strict=True)
        found = [_property(text, str(self.extract_field)) if reason == "stop" else None for text, reason in pairs]
        return pa.array(found, pa.string())

    def label_columns(self) -> Sequence[LabelColumn]:
        """See ``Mode``."""
        return [LabelColumn(name=ANSWER, rank=1)]

    def rules(self, batch: "pa.RecordBatch", is_error: "pa.Array") -> "Iterator[tuple[str, pa.Array]]":
        """See ``Mode``."""
        import pyarrow.compute as pc

        found, expected = batch[ANSWER], self._answers(batch["completion"], batch["finish_reason"].to_pylist())
        are_null = pc.and_(pc.is_null(found), pc.is_null(expected))
        yield f"not the answer that {self.flag} finds", pc.or_kleene(are_null, pc.equal(found, expected))

    def tally(self, batch: "pa.RecordBatch | pa.Table") -> Mapping[str, Mapping[str, int]]:
        """Count the completions with an answer and those without."""
        texts, reasons = batch["completion"], batch["finish_reason"].to_pylist()
        answers = batch[ANSWER] if ANSWER in batch.schema.names else self._answers(texts, reasons)
        num_found = len(answers) - answers.null_count
        counted = {"found": num_found, "none": len(texts) - texts.null_count - num_found}
        return {ANSWERS: {name: number for name, number in counted.items() if number}}

    def describe(self, outcome: Outcome) -> Sequence[tuple[str, str]]:
        """Say how many completions have no answer."""
        counted = outcome.tallies.get(ANSWERS, {})
        num_none, total = counted.get("none", 0), sum(counted.values())
        line = f"{num_none:,} of {total:,} completions have none" if num_none else "found in all completions"
        return [(ANSWER, line)] if total else []


def _property(text: str, name: str) -> str | None:
    """Return a property of an object given as JSON text: a string as it is, any other value as JSON.

    >>> _property('{"answer": 72}', "answer"), _property('{"answer": null}', "answer")
    ('72', None)
    """
    from job.arrow.json_schema import DoesNotFit, Shape

    try:
        whole: Any = json.loads(text)
        value = whole.get(name) if isinstance(whole, dict) else None
        if value is None:
            return None
        return str(Shape("string" if isinstance(value, str) else "json").convert(value)).strip() or None
    except (ValueError, RecursionError, DoesNotFit):
        return None
