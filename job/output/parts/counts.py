"""What came out, in numbers: counted once for each part, when it is written, and stored in its footer.

A part of an older version says less: then the finish reasons, what modes count and the first errors are missing.
"""

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from job.arrow.values import count_values
from job.errors import JobError
from job.modes.mode import Mode, Outcome
from job.output.parts.manifest import Manifest
from job.output.parts.part_schema import REUSED_FROM
from job.output.store.store import Store
from job.records import Completion, RowError

METADATA_KEY = b"job.counts"

MAX_DETAIL_CHARS = 1000
"""How much of the first error of each kind is kept."""

FirstError = tuple[int, str]
"""A row index, and the error's detail."""


@dataclass(slots=True, kw_only=True)
class Counts:
    """Sums over output rows. Mutable, since rows are added one at a time."""

    num_rows: int = 0
    num_prompt_tokens: int = 0
    num_completion_tokens: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    """Error kind to number of rows."""
    finish_reasons: Counter[str] = field(default_factory=Counter)
    """Of the rows with a completion."""
    tallies: dict[str, Counter[str]] = field(default_factory=dict)
    """What modes count, by name: value to number of rows. See ``Mode.tally``."""
    first_errors: dict[str, FirstError] = field(default_factory=dict)
    """Of each kind, the one with the lowest row index."""
    redone: Counter[str] = field(default_factory=Counter)
    """Of rows that were recomputed with sampling options of their own (``redone``): the options to number of rows."""
    reused: Counter[str] = field(default_factory=Counter)
    """Of rows that were copied from other runs: the run to number of rows."""

    @property
    def num_errors(self) -> int:
        """Rows without a completion."""
        return self.errors.total()

    @property
    def error_rate(self) -> float:
        """Share of rows without a completion."""
        return self.num_errors / max(1, self.num_rows)

    def add(self, completion: Completion) -> None:
        """Count one row, but not what modes count."""
        self.num_rows += 1
        self.num_prompt_tokens += completion.num_prompt_tokens
        self.num_completion_tokens += completion.num_completion_tokens
        if completion.error is not None:
            self.errors[completion.error.kind] += 1
            self._see_error(completion.error.kind, completion.row_idx, completion.error.detail)
        elif completion.finish_reason is not None:
            self.finish_reasons[completion.finish_reason] += 1
        if (origin := completion.values.get(REUSED_FROM)) is not None:
            self.reused[origin] += 1

    def add_batch(self, batch: pa.RecordBatch | pa.Table, modes: Iterable[Mode] = ()) -> None:
        """Count the rows of a journal or a part, and what these modes count."""
        self.num_rows += batch.num_rows
        self.num_prompt_tokens += pc.sum(batch["num_prompt_tokens"]).as_py() or 0
        self.num_completion_tokens += pc.sum(batch["num_completion_tokens"]).as_py() or 0
        failed = batch.filter(pc.is_valid(batch["error"]))
        for row_idx, text in zip(failed["row_idx"].to_pylist(), failed["error"].to_pylist(), strict=True):
            error = RowError.parse(text)
            self.errors[error.kind] += 1
            self._see_error(error.kind, row_idx, error.detail)
        self.finish_reasons.update(count_values(batch["finish_reason"]))
        if REUSED_FROM in batch.schema.names:
            self.reused.update(count_values(batch[REUSED_FROM]))
        self.tally(batch, modes)

    def tally(self, batch: pa.RecordBatch | pa.Table, modes: Iterable[Mode]) -> None:
        """Count only what these modes count."""
        for mode in modes:
            for name, values in mode.tally(batch).items():
                self.tallies.setdefault(name, Counter()).update(values)

    def include(self, other: "Counts") -> None:
        """Add the counts of other rows."""
        self.num_rows += other.num_rows
        self.num_prompt_tokens += other.num_prompt_tokens
        self.num_completion_tokens += other.num_completion_tokens
        self.errors.update(other.errors)
        self.finish_reasons.update(other.finish_reasons)
        for name, values in other.tallies.items():
            self.tallies.setdefault(name, Counter()).update(values)
        for kind, (row_idx, detail) in other.first_errors.items():
            self._see_error(kind, row_idx, detail)
        self.redone.update(other.redone)
        self.reused.update(other.reused)

    def without(self, others: "Counts") -> "Counts":
        """Return the counts without some of the rows."""
        errors = self.errors - others.errors
        return Counts(
            num_rows=self.num_rows - others.num_rows,
            num_prompt_tokens=self.num_prompt_tokens - others.num_prompt_tokens,
            num_completion_tokens=self.num_completion_tokens - others.num_completion_tokens,
            errors=errors,
            finish_reasons=self.finish_reasons - others.finish_reasons,
            tallies={name: values - others.tallies.get(name, Counter()) for name, values in self.tallies.items()},
            first_errors={kind: first for kind, first in self.first_errors.items() if kind in errors},
            redone=self.redone,
            reused=self.reused - others.reused,
        )

    def without_errors(self, kinds: Iterable[str]) -> "Counts":
        """Return the counts without the rows that have an error of one of these kinds; none means any kind.

        An error row has no completion, so only its prompt tokens stay in the sum.
        """
        left_out = set(kinds) or set(self.errors)
        errors = Counter({kind: number for kind, number in self.errors.items() if kind not in left_out})
        return Counts(
            num_rows=self.num_rows - self.num_errors + errors.total(),
            num_prompt_tokens=self.num_prompt_tokens,
            num_completion_tokens=self.num_completion_tokens,
            errors=errors,
            finish_reasons=self.finish_reasons,
            tallies=self.tallies,
            first_errors={kind: first for kind, first in self.first_errors.items() if kind in errors},
            redone=self.redone,
            reused=self.reused,
        )

    @classmethod
    def total(cls, counts: Iterable["Counts"]) -> "Counts":
        """Return the sum of several counts."""
        total = cls()
        for each in counts:
            total.include(each)
        return total

    def _see_error(self, kind: str, row_idx: int, detail: str) -> None:
        found = row_idx, detail[:MAX_DETAIL_CHARS]
        self.first_errors[kind] = min(found, self.first_errors.get(kind, found))

    def outcome(self, manifest: Manifest) -> Outcome:
        """Return what the modes of a run describe."""
        return Outcome(
            num_completions=self.num_rows - self.num_errors,
            num_completion_tokens=self.num_completion_tokens,
            finish_reasons=self.finish_reasons,
            tallies=self.tallies,
            max_new_tokens=manifest.section("sampling")["max_new_tokens"],
            has_own_limits=any("max_new_tokens" in mode.varies() for mode in manifest.modes)
            or any("--max-new-tokens" in options for options in self.redone),
        )

    def lines(self, manifest: Manifest) -> list[tuple[str, str]]:
        """Return what came out as text: titles and lines, which the modes of a run write."""
        outcome = self.outcome(manifest)
        if not outcome.num_completions:
            return []
        redone = [f"{number:,} with {options}" for options, number in self.redone.most_common()]
        lines = [line for mode in manifest.modes for line in mode.describe(outcome)]
        return [*lines, *([("redone", ", ".join(redone))] if redone else []), *self._reused_lines()]

    def _reused_lines(self) -> list[tuple[str, str]]:
        if not self.reused:
            return []
        origins = [f"{number:,} from {name}" for name, number in self.reused.most_common()]
        return [("reused", f"{', '.join(origins)}; computed {self.num_rows - self.reused.total():,}")]

    def to_dict(self) -> dict[str, object]:
        """Return JSON values."""
        return {
            "num_rows": self.num_rows,
            "num_prompt_tokens": self.num_prompt_tokens,
            "num_completion_tokens": self.num_completion_tokens,
            "errors": dict(self.errors),
            "finish_reasons": dict(self.finish_reasons),
            "tallies": {name: dict(values) for name, values in self.tallies.items()},
            "first_errors": {kind: list(first) for kind, first in self.first_errors.items()},
            **({"redone": dict(self.redone)} if self.redone else {}),
            **({"reused": dict(self.reused)} if self.reused else {}),
        }

    def to_metadata(self) -> dict[bytes, bytes]:
        """Return the entry of a part's metadata."""
        return {METADATA_KEY: json.dumps(self.to_dict()).encode()}

    @classmethod
    def from_json(cls, content: bytes) -> "Counts":
        """Read the JSON that ``to_metadata`` wrote, in this version or an older one.

        Raises:
            ValueError: the JSON does not contain counts.
        """
        try:
            values = json.loads(content)
            numbers = {name: values[name] for name in ("num_rows", "num_prompt_tokens", "num_completion_tokens")}
            if not all(isinstance(number, int) for number in numbers.values()):
                raise ValueError("its counts are not numbers")
            return cls(
                **numbers,
                errors=_counter(values["errors"]),
                finish_reasons=_counter(values.get("finish_reasons", {})),
                tallies={name: _counter(each) for name, each in values.get("tallies", {}).items()},
                first_errors={
                    kind: (int(row_idx), str(detail))
                    for kind, (row_idx, detail) in values.get("first_errors", {}).items()
                },
                redone=_counter(values.get("redone", {})),
                reused=_counter(values.get("reused", {})),
            )
        except (LookupError, TypeError, AttributeError):
            raise ValueError("it contains no counts") from None

    @classmethod
    def of_part(cls, store: Store, name: str) -> "Counts":
        """Return the counts in a part's footer.

        Raises:
            JobError: the file cannot be read, or is not a part.
        """
        try:
            with store.open(name) as file:
                return cls.from_json(pq.read_metadata(file).metadata[METADATA_KEY])
        except (OSError, ValueError, KeyError, TypeError) as error:
            where = store.describe(name)
            raise JobError(
                f"{where} is not a part of this run ({error}). Remove it; its rows will be recomputed."
            ) from None


def _counter(values: Mapping[str, Any]) -> Counter[str]:
    """Read numbers by name.

    Raises:
        ValueError: one of them is not a number.
    """
    found = Counter(dict(values.items()))
    if not all(isinstance(number, int) for number in found.values()):
        raise ValueError("its counts are not numbers")
    return found
