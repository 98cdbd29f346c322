"""The columns of a run's parts, as its modes define them (``job.modes``: a new column is a mode's).

Modes measure values of completions, and derive columns from those.

Derived columns are computed when a part is written, so the journal does not contain them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import pyarrow as pa

from job.modes.mode import Mode
from job.output.parts.manifest import Manifest
from job.output.parts.older_formats import FORMAT_2_JOURNAL
from job.output.parts.row_keys import FIELD
from job.records import Completion

BASE = pa.schema(
    [
        pa.field("row_idx", pa.int64(), nullable=False),
        pa.field("sample_idx", pa.int32(), nullable=False),
        pa.field("prompt", pa.string()),
        pa.field("completion", pa.string()),
        pa.field("finish_reason", pa.string()),
        pa.field("num_prompt_tokens", pa.int32(), nullable=False),
        pa.field("num_completion_tokens", pa.int32(), nullable=False),
        pa.field("error", pa.string()),
        pa.field("error_kind", pa.string()),
    ]
)
"""The columns of every mode, in the order of the output; the kept columns come after the first two."""

REUSED_FROM, REUSED_ROW_IDX = "reused_from", "reused_row_idx"

ORIGIN = (pa.field(REUSED_FROM, pa.string()), pa.field(REUSED_ROW_IDX, pa.int64()))
"""The columns of a run with ``--reuse``: which run computed a row that was copied, and which row it was there. They are
null for rows that this run has computed.
"""


@dataclass(frozen=True, kw_only=True)
class Columns:
    """The run's own columns, without those of the dataset."""

    modes: tuple[Mode, ...]
    """The active modes, in their order."""
    include_prompt: bool = True
    has_error_kind: bool = True
    """False for a run of format 2, whose parts do not have this column."""
    has_origin: bool = False
    """Whether rows may have been copied from other runs."""

    @classmethod
    def of(cls, manifest: Manifest) -> "Columns":
        """Return the columns of a run. A run of an older version keeps the columns that it started with."""
        return cls(
            modes=manifest.modes,
            include_prompt=manifest.section("columns")["include_prompt"],
            has_error_kind=not manifest.is_format_2,
            has_origin=manifest.section("columns")["reused"],
        )

    @cached_property
    def fields(self) -> list[pa.Field]:
        """The columns in the order of the output; those of the dataset come after the first two."""
        return [*self.of_completions, *(column for mode in self.modes for column in mode.derived())]

    @cached_property
    def of_completions(self) -> list[pa.Field]:
        """The values of a completion that a part contains; the completion can be restored from them."""
        left_out = {*(() if self.include_prompt else ("prompt",)), *(() if self.has_error_kind else ("error_kind",))}
        return [column for column in self._of_values if column.name not in left_out]

    @cached_property
    def journaled(self) -> pa.Schema:
        """The columns of a journal: every value of a completion, and what its row asks.

        Workers of version 0.1 may help with a run of format 2, and read only journals that have exactly their columns.
        """
        return pa.schema([*self._of_values, FIELD]) if self.has_error_kind else pa.schema(FORMAT_2_JOURNAL)

    @property
    def _of_values(self) -> list[pa.Field]:
        origin = ORIGIN if self.has_origin else ()
        return [*BASE, *(column for mode in self.modes for column in mode.measured()), *origin]

    @property
    def names(self) -> frozenset[str]:
        """The names of our columns. All others are free for the dataset's, even if another run would use them."""
        return frozenset(field.name for field in self.fields)

    def schema(self, kept: pa.Schema) -> pa.Schema:
        """Return the schema of parts with these columns of the dataset, and with their metadata."""
        own = self.fields
        return pa.schema([*own[:2], *kept, *own[2:]], metadata=kept.metadata)

    def derive(self, completions: Sequence[Completion]) -> Mapping[str, pa.Array]:
        """Return the derived columns of completions, which must include all samples of each row."""
        columns: dict[str, pa.Array] = {}
        for mode in self.modes:
            columns |= mode.derive(completions, columns)
        return columns
