"""``--extend``: goes on with a run after rows were appended to its dataset. Checks that those it has are the same.

Each finished row is compared by its key (what it asks) and, in finished parts, by its kept columns. So are rows whose
answers are to be copied from another run, which was decided by what they asked. Other rows that are not finished are
computed from the dataset as it is now.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from job.data.row_keys import key_of
from job.data.source import read_rows
from job.errors import JobError, UsageError, first_line
from job.launch.activity import doing
from job.output.looking.found import FoundRun
from job.output.looking.survey import refuse_if_alive
from job.output.parts.copies import Copies
from job.output.parts.copy_plan import read_copy_plans
from job.output.parts.differences import is_growth
from job.output.parts.fence import add_fence
from job.output.parts.growth import read_growth
from job.output.parts.journal import JournalReader
from job.output.parts.manifest import Manifest
from job.output.parts.opened_part import opened_part
from job.output.parts.part_schema import Columns
from job.output.parts.partials import Contents
from job.output.parts.row_keys import ROW_KEY, UNKNOWN, read_keys
from job.output.store.directory import RunDirectory
from job.output.store.store import Entry, Store
from job.records import KEY_BYTES

if TYPE_CHECKING:
    from job.run.examination import Examined


def check_extended(examined: "Examined", found: Manifest | None, store: Store) -> tuple[str, ...] | None:
    """Check that the dataset still begins with the rows of the run, if it is to be extended.

    What unfinished rows have of their answers is given up: it may be that of another row. So is whatever workers write
    from now on that have begun before: they have the rows of before.

    Args:
        found: the manifest in the run directory, if there is one.

    Returns:
        Notes; None if another launch has extended the run since ``found`` was read.

    Raises:
        UsageError: it does not, or workers are active.
    """
    config = examined.config
    if not config.output.extend:
        return ()
    if found is None:
        return (f"--extend: there is no run in {store.describe()} yet, so one begins",)
    name = config.data.dataset
    if examined.dataset.commit is not None:
        raise UsageError(
            f"--extend: --dataset {name} is on the Hub, and a run keeps the commit that it began with. Use a new "
            f"--output, and --reuse {config.output.output}, which copies the rows that are the same."
        )
    if not is_growth(found, examined.manifest):
        return ()  # the same run, or one that is refused when the directory is claimed
    num_rows, num_now = found.plan.num_rows, examined.plan.num_rows
    if num_now < num_rows:
        raise UsageError(
            f"--extend: --dataset {name} has {num_now:,} rows now, and the run in --output has {num_rows:,}. "
            f"{_advice(examined)}"
        )
    run = FoundRun(manifest=found, plan=found.plan, directory=RunDirectory(store, found.names))
    try:
        refuse_if_alive(run)
    except UsageError as error:
        if read_growth(store, len(found.growth)):
            return None
        raise UsageError(f"--extend: {error}") from None
    check = ExtensionCheck(examined, run)
    doing("checking that the rows of the run are the same")
    check.look()
    if not check.is_finished:
        if add_fence(store, found, check.sealed) is None:
            return None
        check.look()  # at parts that workers have finished in the meantime
    return (f"rows appended: {num_now - num_rows:,}; the {num_rows:,} that the run has are the same",)


def _advice(examined: "Examined") -> str:
    output = examined.config.output.output
    return f"Rows can only be appended. For other changes, use a new --output, and --reuse {output}."


class ExtensionCheck:
    """Compares what is finished of a run with the rows that its dataset has now."""

    def __init__(self, examined: "Examined", run: FoundRun) -> None:
        """Read nothing yet."""
        self._examined, self._directory, self._plan = examined, run.directory, run.plan
        self._copies = Copies(read_copy_plans(run.directory.store), run.plan, Columns.of(run.manifest))
        self._has_looked = False
        self._checked: set[int] = set()
        """Finished shards."""
        self.is_finished = False
        """Whether nothing was left to do of the run."""
        self.sealed: dict[str, int] = {}
        """The logs of unfinished shards, and how much of each was compared and may count."""

    def look(self) -> None:
        """Compare what has not been compared yet.

        Raises:
            UsageError: a row is another one now.
        """
        written = self._directory.written_shards()
        is_first, self._has_looked = not self._has_looked, True
        journals = _by_shard(self._directory.all_journals()) if is_first else {}
        cut_logs = _by_shard(self._directory.all_cut_logs()) if is_first else {}
        for shard_idx in range(self._plan.num_shards):
            rows = self._plan.rows(shard_idx)
            if not rows or shard_idx in self._checked:
                continue
            if shard_idx in written:
                self._checked.add(shard_idx)
                _check_part(self._examined, self._directory, shard_idx, rows)
            elif is_first and (copied := self._copies.keys_of(shard_idx)):
                _check_keys(self._examined, rows, copied, "its answer was found in another run")
            if is_first:
                self._seal(rows, shard_idx in written, journals.get(shard_idx, ()), cut_logs.get(shard_idx, ()))
        self.is_finished = written >= {*range(self._plan.num_shards)} and not self._directory.shards_to_retry()

    def _seal(self, rows: range, is_written: bool, journals: Sequence[str], cut_logs: Sequence[str]) -> None:
        """Check the finished rows of a shard that is not finished. (If it is to be retried, its part was checked.)"""
        known: dict[int, bytes] = {}
        for name in journals:
            reader = JournalReader.of(self._directory, name)
            for completion in reader.read():
                known[completion.row_idx] = completion.values.get(ROW_KEY) or UNKNOWN
            self.sealed[name] = reader.num_bytes
        if known and not is_written:
            _check_keys(self._examined, rows, known)
        for name in cut_logs:
            contents = Contents.of(self._directory, name)
            if all(is_written or row_idx in known for row_idx, _, _ in contents.read()):
                self.sealed[name] = contents.num_bytes


def _by_shard(logs: Iterable[tuple[int, str, Entry]]) -> Mapping[int, Sequence[str]]:
    found: dict[int, list[str]] = {}
    for shard_idx, name, _ in logs:
        found.setdefault(shard_idx, []).append(name)
    return found


def _check_part(examined: "Examined", directory: RunDirectory, shard_idx: int, rows: range) -> None:
    """Check the rows of a finished shard."""
    known = read_keys(directory, shard_idx, len(rows))
    if known is None:
        raise UsageError(
            f"--extend: {directory.store.describe(directory.names.keys(shard_idx))}, which says what the rows of a "
            "part ask, is missing or damaged (older versions wrote none), so nothing shows that they are the same. "
            "Use a new --output."
        )
    kept = _check_keys(examined, rows, {idx: known[KEY_BYTES * at :][:KEY_BYTES] for at, idx in enumerate(rows)})
    if kept.num_columns:
        _check_kept(examined, directory, shard_idx, rows, kept.rename_columns(examined.kept.schema.names))


def _check_keys(
    examined: "Examined", rows: range, known: dict[int, bytes], when: str = "the run computed it"
) -> pa.Table:
    """Check that rows ask what they asked. Returns the kept columns.

    Args:
        when: what happened at that time, for the message.
    """
    columns, tables = examined.renderer.read_columns, []
    name = examined.config.data.dataset
    for block in read_rows(examined.source, name, rows, columns, examined.kept_columns):
        tables.append(block.kept)
        for row in block.rows:
            if row.row_idx in known and (key_of(row, columns) or UNKNOWN) != (before := known[row.row_idx]):
                has_changed = "could not be read" if before == UNKNOWN else "asked something else"
                raise UsageError(
                    f"--extend: row {row.row_idx} of --dataset {name} {has_changed} when {when}. {_advice(examined)}"
                )
    return pa.concat_tables(tables)


def _check_kept(examined: "Examined", directory: RunDirectory, shard_idx: int, rows: range, kept: pa.Table) -> None:
    """Check that kept columns have the values that a part has."""
    try:
        with opened_part(directory, shard_idx) as file:
            before = file.read(columns=kept.column_names)
    except (OSError, pa.ArrowException) as error:
        raise JobError(
            f"{directory.store.describe(directory.names.part(shard_idx))} cannot be read: {first_line(error)}."
        ) from None
    num_samples = examined.plan.num_samples
    if num_samples > 1:
        before = before.take(np.arange(len(rows)) * num_samples)
    for name in kept.column_names:
        for at in _differing(before[name], kept[name]):
            raise UsageError(
                f"--extend: row {rows[at]} of --dataset {examined.config.data.dataset} has another value "
                f"in column {name!r} than when the run computed it. {_advice(examined)}"
            )


def _differing(before: pa.ChunkedArray, now: pa.ChunkedArray) -> Iterator[int]:
    """Yield the places where columns differ. (Numbers that are not numbers are unequal to themselves.)"""
    if before.type != now.type:
        before = before.cast(now.type)
    if not before.equals(now):
        pairs = zip(before, now, strict=True)
        yield from (at for at, (was, then) in enumerate(pairs) if repr(was) != repr(then))
