"""The contents of a part in numbers: counted once, when it is written, and stored in its footer."""

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

import pyarrow.parquet as pq

from job.errors import JobError
from job.output.store.store import Store
from job.records import Completion

METADATA_KEY = b"job.counts"


@dataclass(slots=True, kw_only=True)
class Counts:
    """Sums over output rows. Mutable, since rows are added one at a time."""

    num_rows: int = 0
    num_prompt_tokens: int = 0
    num_completion_tokens: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    """Error kind to number of rows."""

    @property
    def num_errors(self) -> int:
        """Rows without a completion."""
        return self.errors.total()

    @property
    def error_rate(self) -> float:
        """Share of rows without a completion."""
        return self.num_errors / max(1, self.num_rows)

    def add(self, completion: Completion) -> None:
        """Count one row."""
        self.num_rows += 1
        self.num_prompt_tokens += completion.num_prompt_tokens
        self.num_completion_tokens += completion.num_completion_tokens
        if completion.error is not None:
            self.errors[completion.error.kind] += 1

    def include(self, other: "Counts") -> None:
        """Add the counts of other rows."""
        self._change(other, 1)

    def exclude(self, other: "Counts") -> None:
        """Subtract counts that were included."""
        self._change(other, -1)

    def _change(self, other: "Counts", sign: int) -> None:
        self.num_rows += sign * other.num_rows
        self.num_prompt_tokens += sign * other.num_prompt_tokens
        self.num_completion_tokens += sign * other.num_completion_tokens
        self.errors.update({kind: sign * number for kind, number in other.errors.items()})

    @classmethod
    def of(cls, completions: Iterable[Completion]) -> "Counts":
        """Count rows."""
        counts = cls()
        for completion in completions:
            counts.add(completion)
        return counts

    def to_dict(self) -> dict[str, object]:
        """Return JSON values."""
        return {
            "num_rows": self.num_rows,
            "num_prompt_tokens": self.num_prompt_tokens,
            "num_completion_tokens": self.num_completion_tokens,
            "errors": dict(self.errors),
        }

    def to_metadata(self) -> dict[bytes, bytes]:
        """Return the entry of a part's metadata."""
        return {METADATA_KEY: json.dumps(self.to_dict()).encode()}

    @classmethod
    def from_json(cls, content: bytes) -> "Counts":
        """Read the JSON that ``to_metadata`` wrote.

        Raises:
            ValueError: the JSON does not contain counts.
        """
        try:
            values = json.loads(content)
            errors = Counter(dict(values["errors"].items()))
            numbers = {name: values[name] for name in ("num_rows", "num_prompt_tokens", "num_completion_tokens")}
        except (LookupError, TypeError, AttributeError):
            raise ValueError("it contains no counts") from None
        if not all(isinstance(number, int) for number in [*numbers.values(), *errors.values()]):
            raise ValueError("its counts are not numbers")
        return cls(**numbers, errors=errors)

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
