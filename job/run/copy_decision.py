"""Which rows of other runs answer the rows of this one. Decided once, before the first row is computed.

other runs -> their keys and errors -> KnownRows; rows of the dataset -> keys; both -> CopyPlan -> Copies
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from job.config import RunConfig
from job.data.row_keys import key_of
from job.data.source import read_rows
from job.errors import JobError
from job.launch.activity import doing
from job.observe.text import number
from job.output.parts.copies import Copies, OtherRun
from job.output.parts.copy_plan import COMPUTED, CopyPlan, Other, read_copy_plans, write_copy_plan
from job.output.parts.known_rows import NOTHING, KnownRows, matched
from job.output.parts.opened_part import opened_part
from job.output.parts.part_schema import REUSED_ROW_IDX, Columns
from job.output.parts.plan import Plan
from job.output.parts.redone import from_metadata
from job.output.parts.row_keys import RowKeys
from job.output.store.names import KEYS
from job.records import KEY_BYTES
from job.run.reuse import check_others

if TYPE_CHECKING:
    from job.run.examination import Examined
    from job.run.preparation import Prepared


def with_copies(prepared: "Prepared") -> "Prepared":
    """Return a prepared run with what it copies. If that is not decided yet for all of its shards, decide it now.

    Raises:
        JobError: the dataset cannot be read.
    """
    if not (prepared.is_claimed and prepared.columns.has_origin):
        return prepared
    store, plan = prepared.directory.store, prepared.plan
    while (num_decided := _num_shards(plans := read_copy_plans(store))) < plan.num_shards:
        doing("looking for rows that other runs have computed")
        others = [Other(**{key: each[key] for key in ("name", "address", "digest")}) for each in _begun_with(prepared)]
        decide(prepared, others, plans, num_decided)
    copies = Copies(plans, plan, prepared.columns)
    return replace(prepared, copies=copies, notes=(*prepared.notes, _note(prepared, plans)))


def _begun_with(prepared: "Prepared") -> list[dict[str, str]]:
    others: list[dict[str, str]] = prepared.manifest.about.get("reuse", [])
    return others


def _note(prepared: "Prepared", plans: Sequence[CopyPlan]) -> str:
    num_reused, num_rows = sum(plan.num_reused for plan in plans), prepared.plan.num_rows
    names = ", ".join(other["name"] for other in _begun_with(prepared))
    return f"copied from {names}: {num_reused:,} of {num_rows:,} rows; computed: {num_rows - num_reused:,}"


def _num_shards(plans: Sequence[CopyPlan]) -> int:
    return sum(plan.num_shards for plan in plans)


def decide(prepared: "Prepared", others: Sequence[Other], plans: Sequence[CopyPlan], first_shard: int) -> None:
    """Decide which rows are copied from ``first_shard`` on, unless another process is faster."""
    is_drawn, plan = draws(prepared.config), prepared.plan
    known = KnownRows.joined(list(_known(others)))
    if is_drawn:
        known = known.without_draws(np.concatenate([np.empty(0, np.int64), *_draws_of(plans, plan)]))
    rows = range(plan.rows(first_shard).start, plan.num_rows)
    keys = keys_of_rows(prepared, rows)
    run, row_idx, drawn_at = known.origin_of(matched(known, keys, rows.start, is_drawn=is_drawn))
    if not is_drawn:
        drawn_at[:] = COMPUTED
    shards = [plan.rows(idx) for idx in range(first_shard, plan.num_shards)]
    of_shards = [slice(shard.start - rows.start, shard.stop - rows.start) for shard in shards]
    cut = [(run[place], row_idx[place], drawn_at[place]) for place in of_shards]
    write_copy_plan(prepared.directory.store, len(plans), others, first_shard, cut)


def _draws_of(plans: Sequence[CopyPlan], plan: Plan) -> Iterator[np.ndarray]:
    """Yield the indices of draws that rows of earlier shards have: those that were copied, and their own."""
    for decided in plans:
        yield decided.draws
        for shard_idx in range(decided.first_shard, decided.first_shard + decided.num_shards):
            runs, _ = decided.of(shard_idx)
            yield np.flatnonzero(runs == COMPUTED) + plan.rows(shard_idx).start


def draws(config: RunConfig) -> bool:
    """Whether an answer may depend on the row's random numbers, so that it is one draw of several."""
    modes = config.active_modes
    if any(mode.draws_nothing and not mode.always_generates for mode in modes):
        return False
    return config.sampling.temperature > 0 or any("temperature" in mode.varies() for mode in modes)


def keys_of_rows(examined: "Examined", rows: range) -> np.ndarray:
    """Return what rows of the dataset ask, [rows, 16] uint8; zeros for those that cannot be read.

    Raises:
        JobError: the dataset cannot be read.
    """
    columns, keys = examined.renderer.read_columns, bytearray(KEY_BYTES * len(rows))
    name = examined.config.data.dataset
    for block in read_rows(examined.source, name, rows, columns, ()):
        for row in block.rows:
            if (key := key_of(row, columns)) is not None:
                place = KEY_BYTES * (row.row_idx - rows.start)
                keys[place : place + KEY_BYTES] = key
    return np.frombuffer(keys, np.uint8).reshape(-1, KEY_BYTES)


def foreseen(examined: "Examined", others: Sequence[OtherRun]) -> "Examined":
    """Return what was examined for a preview, with a note on how many rows would be copied.

    Raises:
        UsageError: the run would be refused.
        JobError: the dataset cannot be read.
    """
    if not others:
        return examined
    examined = check_others(examined, others)
    names = ", ".join(run.other.name for run in others)
    num_rows = examined.plan.num_rows
    if examined.source.is_remote or examined.dataset.is_partial:
        note = f"how many rows would be copied from {names} is not known before all of them have been fetched"
    else:
        known = KnownRows.joined(list(_known([run.other for run in others])))
        keys = keys_of_rows(examined, range(num_rows))
        places = matched(known, keys, 0, is_drawn=draws(examined.config))
        note = f"{int((places != NOTHING).sum()):,} of {num_rows:,} rows would be copied from {names}"
    return replace(examined, notes=(*examined.notes, note))


def record_keys(prepared: "Prepared", note: Callable[[str], None]) -> None:
    """Record what the rows of finished parts ask, where that is not known because an older version wrote them.

    The dataset is the one that the run began with, or else the run would have been refused.
    """
    directory = prepared.directory
    known = {int(entry.name) for entry in directory.store.list(KEYS) if entry.name.isdecimal()}
    unknown = [] if prepared.manifest.is_format_2 else sorted(directory.written_shards() - known)
    for shard_idx in unknown:
        rows = prepared.plan.rows(shard_idx)
        RowKeys(rows, keys_of_rows(prepared, rows).tobytes()).settle(directory, shard_idx)
    if unknown:
        note(f"recorded what the rows of {number(len(unknown), 'part')} ask, for --reuse and --extend")


def _known(others: Sequence[Other]) -> Iterator[KnownRows]:
    """Yield the rows of other runs that have an answer, part by part. A run that is missing has none."""
    for place, other in enumerate(others):
        try:
            run = OtherRun.open(other)
            shards = sorted(run.directory.written_shards())
        except (OSError, JobError):  # copying says so
            continue
        for shard_idx in shards:
            found = _known_of_part(run, shard_idx, place)
            if found is not None:
                yield found


def _known_of_part(run: OtherRun, shard_idx: int, place: int) -> KnownRows | None:
    """Return the rows of a part that have an answer under the run's own options; None if it cannot be read."""
    keys, rows = run.keys_of(shard_idx), run.plan.rows(shard_idx)
    if keys is None or not rows:
        return None
    row_idx = np.arange(rows.start, rows.stop, dtype=np.int64)
    is_known, drawn_at = keys.any(axis=1), row_idx
    num_samples = run.plan.num_samples
    try:
        with opened_part(run.directory, shard_idx) as file:
            has_origin = Columns.of(run.manifest).has_origin  # else a column of that name is the dataset's
            table = file.read(columns=["error", *([REUSED_ROW_IDX] if has_origin else [])])
            redone = [row for row, _ in from_metadata(file.metadata.metadata or {})]
    except (OSError, pa.ArrowException, ValueError):
        return None
    if len(table) != len(rows) * num_samples:
        return None
    is_known = is_known & pc.is_null(table["error"]).to_numpy().reshape(-1, num_samples).all(axis=1)
    is_known[np.array(redone, np.int64) - rows.start] = False
    if has_origin:
        drawn_at = pc.coalesce(table[REUSED_ROW_IDX], np.repeat(row_idx, num_samples)).to_numpy()[::num_samples]
    run_place = np.full(len(row_idx), place, np.int16)
    return KnownRows(keys=keys, run=run_place, row_idx=row_idx, drawn_at=drawn_at).where(is_known)
