"""Copies rows of other runs, as Arrow: whatever columns a mode has go along unread.

A part is read by row groups, and those that were read last are kept, since neighboring rows often come from the same
one. If another run is missing or has changed, or a part of it is damaged, these rows are not copied, and are then
computed like any others.
"""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from job.errors import JobError, first_line
from job.output.parts.copy_plan import COMPUTED, CopyPlan, Other
from job.output.parts.manifest import Manifest, read_manifest
from job.output.parts.opened_part import opened_part
from job.output.parts.part_schema import REUSED_FROM, REUSED_ROW_IDX, Columns
from job.output.parts.part_tables import ReusedRows
from job.output.parts.plan import Plan
from job.output.parts.redone import from_metadata
from job.output.parts.row_keys import read_keys
from job.output.store.addresses import open_store
from job.output.store.directory import RunDirectory
from job.records import KEY_BYTES

MAX_CACHED_BYTES = 1 << 30
"""How much of other runs' parts is kept in memory."""

OPTIONAL = frozenset(["error_kind", REUSED_FROM, REUSED_ROW_IDX])
"""Columns that another run may lack."""


class OtherRun:
    """A run whose rows are copied."""

    def __init__(self, other: Other, manifest: Manifest) -> None:
        """Read it as its manifest says. Nothing is read yet."""
        self.other, self.manifest, self.plan = other, manifest, manifest.plan
        self.directory = RunDirectory(open_store(other.address), manifest.names)

    @classmethod
    def open(cls, other: Other) -> "OtherRun":
        """Find it again.

        Raises:
            OSError, JobError: it is no longer there, or another run is.
        """
        manifest = read_manifest(open_store(other.address))
        if manifest is None or manifest.digest != other.digest:
            raise JobError("another run is there now" if manifest else "it is no longer there")
        return cls(other, manifest)

    @cached_property
    def starts(self) -> np.ndarray:
        """The first row of each shard: [shards] int64."""
        return np.array([self.plan.rows(idx).start for idx in range(self.plan.num_shards)], np.int64)

    def shards_of(self, rows: np.ndarray) -> np.ndarray:
        """Return the shard of each row."""
        return np.searchsorted(self.starts, rows, side="right") - 1

    def keys_of(self, shard_idx: int) -> np.ndarray | None:
        """Return the keys of a shard's rows, [rows, 16] uint8; None if it has none."""
        found = read_keys(self.directory, shard_idx, len(self.plan.rows(shard_idx)))
        return None if found is None else np.frombuffer(found, np.uint8).reshape(-1, KEY_BYTES)


class Copies:
    """What a run copies from others, shard by shard."""

    def __init__(self, plans: Sequence[CopyPlan], plan: Plan, columns: Columns) -> None:
        """Copy what ``plans`` say, into the columns of a run. Nothing is read yet."""
        self._plans, self._plan, self._num_samples = plans, plan, plan.num_samples
        self._note: Callable[[str], None] = lambda text: None
        self._schema = pa.schema(columns.fields)
        self._runs: dict[Other, OtherRun | None] = {}
        self._groups: OrderedDict[tuple[Other, int, int], pa.Table] = OrderedDict()
        self._num_bytes = 0

    def of(self, shard_idx: int, note: Callable[[str], None]) -> ReusedRows | None:
        """Return what can be copied of a shard; None if nothing.

        Args:
            note: shows a message to the user.
        """
        self._note = note
        if (plan := self._plan_of(shard_idx)) is None:
            return None
        runs, indices = plan.of(shard_idx)
        own = np.arange(len(runs), dtype=np.int64) + self._plan.rows(shard_idx).start
        found = []
        for place, other in enumerate(plan.others):
            is_of = runs == place
            if is_of.any() and (run := self._run(other)) is not None:
                found += self._of_run(run, own[is_of], indices[is_of])
        return _joined(found, self._num_samples) if found else None

    def num_rows(self, shard_idx: int) -> int:
        """Return how many dataset rows of a shard are to be copied."""
        plan = self._plan_of(shard_idx)
        return 0 if plan is None else int((plan.of(shard_idx)[0] != COMPUTED).sum())

    def keys_of(self, shard_idx: int) -> dict[int, bytes]:
        """Return what the rows that are copied of a shard ask, by their indices in this run.

        Rows whose keys cannot be read are left out: they cannot be copied, either.
        """
        if (plan := self._plan_of(shard_idx)) is None:
            return {}
        runs, indices = plan.of(shard_idx)
        found: dict[int, bytes] = {}
        for place, other in enumerate(plan.others):
            own = np.flatnonzero(runs == place)
            if not len(own) or (run := self._run(other)) is None:
                continue
            shards = run.shards_of(indices[own])
            for there in np.unique(shards).tolist():
                if (keys := run.keys_of(there)) is not None:
                    rows = own[shards == there]
                    of_rows = keys[indices[rows] - run.plan.rows(there).start]
                    first = self._plan.rows(shard_idx).start
                    found |= {first + at: key.tobytes() for at, key in zip(rows.tolist(), of_rows, strict=True)}
        return found

    def moved(self, shard_idx: int) -> Sequence[int]:
        """Return the rows of a shard whose own draws other rows have. If they are computed, they must draw others."""
        rows = self._plan.rows(shard_idx)
        start, stop = np.searchsorted(self._draws, [rows.start, rows.stop]).tolist()
        found: list[int] = self._draws[start:stop].tolist()
        return found

    @cached_property
    def _draws(self) -> np.ndarray:
        return np.unique(np.concatenate([np.empty(0, np.int64), *(plan.draws for plan in self._plans)]))

    def _plan_of(self, shard_idx: int) -> CopyPlan | None:
        return next((p for p in self._plans if p.first_shard <= shard_idx < p.first_shard + p.num_shards), None)

    def _run(self, other: Other) -> OtherRun | None:
        if other not in self._runs:
            try:
                self._runs[other] = OtherRun.open(other)
            except (OSError, JobError) as error:
                self._give_up(other, error)
        return self._runs[other]

    def _give_up(self, other: Other, error: Exception) -> None:
        self._runs[other] = None
        self._note(
            f"rows of {other.name} can no longer be copied ({first_line(error)}): those that are left are computed"
        )

    def _of_run(self, run: OtherRun, own: np.ndarray, indices: np.ndarray) -> list[ReusedRows]:
        """Copy rows of one run. A part that cannot be read costs its own rows alone."""
        shards, found = run.shards_of(indices), []
        for shard_idx in np.unique(shards).tolist():
            is_of = shards == shard_idx
            try:
                found.append(self._of_shard(run, shard_idx, own[is_of], indices[is_of]))
            except (OSError, JobError, pa.ArrowException, LookupError, ValueError) as error:
                if self._is_gone(run.other):
                    break
                part = run.directory.store.describe(run.directory.names.part(shard_idx))
                self._note(
                    f"{int(is_of.sum()):,} rows of {part} cannot be copied ({first_line(error)}), and are computed"
                )
        return found

    def _is_gone(self, other: Other) -> bool:
        """Look for a run again. If it is not there, give it up."""
        try:
            OtherRun.open(other)
        except (OSError, JobError) as error:
            self._give_up(other, error)
            return True
        return False

    def _of_shard(self, run: OtherRun, shard_idx: int, own: np.ndarray, indices: np.ndarray) -> ReusedRows:
        keys = run.keys_of(shard_idx)
        if keys is None:
            raise JobError(f"{run.directory.store.describe(run.directory.names.keys(shard_idx))} is missing or damaged")
        places = indices - run.plan.rows(shard_idx).start
        table, redone = self._read(run, shard_idx, _repeated(places, self._num_samples))
        if not np.array_equal(table["row_idx"].to_numpy(), np.repeat(indices, self._num_samples)):
            raise JobError(f"part {shard_idx} has other rows than it should have")
        # A retry may have replaced the part since: a row may be an error now, or an answer under other options.
        is_whole = pc.is_null(table["error"]).to_numpy().reshape(-1, self._num_samples).all(axis=1)
        is_whole &= ~np.isin(indices, redone)
        if not is_whole.all():
            table = table.filter(pa.array(np.repeat(is_whole, self._num_samples)))
            own, indices, places = own[is_whole], indices[is_whole], places[is_whole]
        table = self._with_origin(table, run, own, indices)
        return ReusedRows(row_idx=own, table=table, keys=keys[places])

    def _with_origin(self, table: pa.Table, run: OtherRun, own: np.ndarray, indices: np.ndarray) -> pa.Table:
        """Return copied rows as rows of this run. Where a row was copied before, it is said where it was computed."""
        columns = {name: table[name] for name in table.column_names}
        columns["row_idx"] = pa.array(np.repeat(own, self._num_samples))
        origin = pa.array(np.repeat(indices, self._num_samples)), pa.scalar(run.other.name, pa.string())
        has_origin = Columns.of(run.manifest).has_origin  # else columns of these names are the dataset's
        for name, value in ((REUSED_ROW_IDX, origin[0]), (REUSED_FROM, origin[1])):
            earlier = columns[name] if has_origin else pa.nulls(len(table), self._schema.field(name).type)
            columns[name] = pc.coalesce(earlier, value)
        arrays = [
            columns[field.name].cast(field.type) if field.name in columns else pa.nulls(len(table), field.type)
            for field in self._schema
        ]
        return pa.table(arrays, schema=self._schema)

    def _read(self, run: OtherRun, shard_idx: int, places: np.ndarray) -> tuple[pa.Table, list[int]]:
        """Return our columns of the output rows at some places in a part, in the order of ``places``, and the indices
        of all rows there that were recomputed with other options.

        Raises:
            OSError, pa.ArrowException, LookupError, ValueError: the part cannot be read.
        """
        with opened_part(run.directory, shard_idx) as file:
            there = file.schema_arrow.names
            names = [field.name for field in self._schema if field.name in there or field.name not in OPTIONAL]
            if missing := [name for name in names if name not in there]:
                raise KeyError(f"it has no column {missing[0]!r}")
            sizes = [file.metadata.row_group(idx).num_rows for idx in range(file.num_row_groups)]
            ends = np.cumsum(sizes)
            redone = [row for row, _ in from_metadata(file.metadata.metadata or {})]
            groups = np.unique(np.searchsorted(ends, places, side="right")).tolist()
            tables = [self._group(run.other, shard_idx, group, file, names) for group in groups]
        rows = pa.concat_tables(tables)
        starts = np.concatenate([[0], np.cumsum([sizes[group] for group in groups])])
        of_groups = np.searchsorted(np.array(groups), np.searchsorted(ends, places, side="right"))
        first_places = np.array([ends[group] - sizes[group] for group in groups])
        taken = places - first_places[of_groups] + starts[of_groups]
        if np.array_equal(taken, np.arange(len(rows))):
            return rows, redone
        return rows.take(taken), redone

    def _group(self, other: Other, shard_idx: int, group: int, file: pq.ParquetFile, names: list[str]) -> pa.Table:
        key = (other, shard_idx, group)
        if key in self._groups:
            self._groups.move_to_end(key)
            return self._groups[key]
        table = file.read_row_group(group, columns=names)
        self._groups[key] = table
        self._num_bytes += table.nbytes
        while self._num_bytes > MAX_CACHED_BYTES and len(self._groups) > 1:
            self._num_bytes -= self._groups.popitem(last=False)[1].nbytes
        return table


def _repeated(places: np.ndarray, times: int) -> np.ndarray:
    """Return the places of all samples of rows."""
    return (places[:, None] * times + np.arange(times)).ravel()


def _joined(found: Sequence[ReusedRows], num_samples: int) -> ReusedRows:
    """Return rows from several parts in the order of their indices in this run."""
    if len(found) == 1:
        return found[0]
    rows = np.concatenate([each.row_idx for each in found])
    order = np.argsort(rows, kind="stable")
    table = pa.concat_tables([each.table for each in found]).take(_repeated(order, num_samples))
    return ReusedRows(row_idx=rows[order], table=table, keys=np.concatenate([each.keys for each in found])[order])
