"""The columns of a run's parts, from its modes: those that completions have, and those derived when a part is written.

A derived column needs no place in the journal.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import pyarrow as pa

from job.modes.mode import Mode
from job.output.parts.manifest import Manifest
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


@dataclass(frozen=True, kw_only=True)
class Columns:
    """The columns that are ours, not the dataset's."""

    modes: tuple[Mode, ...]
    """Those that are active, in their order."""
    include_prompt: bool = True
    has_error_kind: bool = True
    """False: a run of format 2, whose parts have no such column."""

    @classmethod
    def of(cls, manifest: Manifest) -> "Columns":
        """Return those of a run. Runs of older versions keep the columns that they began with."""
        return cls(
            modes=manifest.modes,
            include_prompt=manifest.section("columns")["include_prompt"],
            has_error_kind=manifest.format_version > 2,
        )

    @cached_property
    def fields(self) -> list[pa.Field]:
        """The columns in the order of the output; those of the dataset come after the first two."""
        return [*self.of_completions, *(column for mode in self.modes for column in mode.derived())]

    @cached_property
    def of_completions(self) -> list[pa.Field]:
        """The columns that are a completion's own values: from them it can be made again."""
        left_out = {*(() if self.include_prompt else ("prompt",)), *(() if self.has_error_kind else ("error_kind",))}
        return [column for column in self.journaled if column.name not in left_out]

    @cached_property
    def journaled(self) -> pa.Schema:
        """The columns that a journal has: all that a completion is."""
        return pa.schema([*BASE, *(column for mode in self.modes for column in mode.measured())])

    @property
    def names(self) -> frozenset[str]:
        """The names that are ours. Others may be those of the dataset, whatever another run calls so."""
        return frozenset(field.name for field in self.fields)

    def schema(self, kept: pa.Schema) -> pa.Schema:
        """Return the schema of parts with these columns of the dataset; their metadata stays."""
        own = self.fields
        return pa.schema([*own[:2], *kept, *own[2:]], metadata=kept.metadata)

    def derive(self, completions: Sequence[Completion]) -> Mapping[str, pa.Array]:
        """Return the derived columns of completions, all samples of a row among them."""
        return {name: array for mode in self.modes for name, array in mode.derive(completions).items()}
