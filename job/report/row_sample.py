"""Rows of a run to look at: some at random, some of each kind of error, some that were cut, within a number of bytes.

One pass over the small columns of all rows gives their lengths, too. Only the rows that are chosen are read whole.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from job.errors import JobError, first_line
from job.output.looking.found import FoundRun
from job.output.looking.shown_rows import ShardRows
from job.output.parts.part_schema import BASE
from job.records import CUT_REASONS
from job.report.page.embedded import to_json
from job.report.row_texts import RowTexts

MAX_RANDOM = 1_000
MAX_OF_KIND = 30
"""Rows of each kind of error, and rows that were cut: the first of them."""

MAX_BYTES = 3_000_000
"""Of all rows together, as they are in a page, where a ``<`` takes six bytes."""

RANDOM, CUT = "random", "cut"

KEYS = ("row_idx", "sample_idx")
LENGTHS = ("num_prompt_tokens", "num_completion_tokens")
SMALL = (*KEYS, "finish_reason", "error", *LENGTHS)
"""The columns that are read of every row."""

Place = tuple[int, int]
"""A shard, and a position among its rows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RowSample:
    """Some rows, and the lengths of all."""

    rows: tuple[Mapping[str, Any], ...]
    """In their order, as ``RowTexts`` returns them."""
    num_rows: int
    """Rows to choose from."""
    num_random: int
    """How many of ``rows`` were chosen at random."""
    prompt_tokens: npt.NDArray[np.int64]
    """[rows] of those without an error."""
    completion_tokens: npt.NDArray[np.int64]
    finished: npt.NDArray[np.int64]
    """Indices of the rows all of whose samples are finished."""
    unreadable: tuple[str, ...]
    """Why some shards could not be read."""


class _Chooser:
    """Chooses places, shard by shard."""

    def __init__(self, max_random: int) -> None:
        self._max_random = max_random
        self._keys: npt.NDArray[np.uint64] = np.empty(0, np.uint64)
        self._places: npt.NDArray[np.int64] = np.empty((0, 2), np.int64)
        self._of_kind: Counter[str] = Counter()
        self._special: dict[Place, str] = {}

    def add(self, shard_idx: int, small: "_SmallColumns") -> None:
        """Choose from one shard."""
        for position, kind in [*small.errors, *((int(position), CUT) for position in small.cut[:MAX_OF_KIND])]:
            if self._of_kind[kind] < MAX_OF_KIND:
                self._of_kind[kind] += 1
                self._special[shard_idx, position] = kind
        # The rows with the lowest of random keys are a sample of all. A row always has the same key, so that a row
        # which was chosen is chosen again when more have finished, unless it is displaced: who reads it can go on.
        keys = np.concatenate([self._keys, _random_keys(*small.keys)])
        new = np.stack([np.full(small.num_rows, shard_idx), np.arange(small.num_rows)], axis=1)
        places = np.concatenate([self._places, new])
        kept = np.argsort(keys, kind="stable")[: self._max_random]
        self._keys, self._places = keys[kept], places[kept]

    def chosen(self) -> dict[Place, str]:
        """Return the places and why, the most wanted first: what is special and what is at random by turns."""
        places = ((int(shard_idx), int(position)) for shard_idx, position in self._places)
        at_random = [(place, RANDOM) for place in places if place not in self._special]
        both = zip_longest(self._special.items(), at_random)
        return dict(found for pair in both for found in pair if found is not None)


def sample_rows(run: FoundRun, *, max_random: int = MAX_RANDOM, max_bytes: int = MAX_BYTES) -> RowSample:
    """Read the lengths of all finished rows, those in journals included, and some rows. Damaged shards are left out."""
    chooser, lengths, unreadable, num_rows, finished = _Chooser(max_random), [], [], 0, []
    for shard_idx in sorted(run.directory.written_shards() | run.directory.journaled_shards()):
        try:
            small = _SmallColumns.read(run, shard_idx)
        except JobError as error:
            unreadable.append(str(error))
            continue
        num_rows += small.num_rows
        lengths.append(small.lengths)
        row_idx, num_samples = np.unique(small.keys[0], return_counts=True)
        finished.append(row_idx[num_samples == run.plan.num_samples].astype(np.int64))
        chooser.add(shard_idx, small)
    chosen = chooser.chosen()
    rows = _within(dict(_read(run, chosen, unreadable)), chosen, max_bytes)
    both = np.concatenate(lengths, axis=1) if lengths else np.empty((2, 0), np.int64)
    return RowSample(
        rows=tuple(row for _, row in sorted(rows.items())),
        num_rows=num_rows,
        num_random=sum(row["why"] == RANDOM for row in rows.values()),
        prompt_tokens=both[0],
        completion_tokens=both[1],
        finished=np.concatenate(finished) if finished else np.empty(0, np.int64),
        unreadable=tuple(dict.fromkeys(unreadable)),
    )


def _random_keys(row_idx: npt.NDArray[np.uint64], sample_idx: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Return a number for each row that looks random: [rows] uint64, by the finalizer of SplitMix64 (Steele, 2014)."""
    mixed = row_idx * np.uint64(0x9E3779B97F4A7C15) + sample_idx * np.uint64(0xD1B54A32D192ED03) + np.uint64(1)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    return mixed ^ (mixed >> np.uint64(31))


@dataclass(frozen=True, slots=True, kw_only=True)
class _SmallColumns:
    """What is to be known of every row of a shard."""

    keys: npt.NDArray[np.uint64]
    """[2, rows]: row and sample index."""
    errors: list[tuple[int, str]]
    """Position and kind of each; at most ``MAX_OF_KIND`` of a kind."""
    cut: npt.NDArray[np.int64]
    lengths: npt.NDArray[np.int64]
    """[2, rows without an error]: tokens of the prompt and the completion."""

    @property
    def num_rows(self) -> int:
        return len(self.keys[0])

    @classmethod
    def read(cls, run: FoundRun, shard_idx: int) -> "_SmallColumns":
        """Read one shard.

        Raises:
            JobError: it cannot be read, or lacks a column.
        """
        table = _as_of_run(ShardRows(run, shard_idx).columns(list(SMALL)), run, shard_idx)
        is_done = pc.is_null(table["error"]).to_numpy()
        errors = list(_first_of_kinds(table["error"]))
        columns = [table[name].to_numpy().astype(np.int64) for name in LENGTHS]
        is_cut = pc.is_in(table["finish_reason"], pa.array(CUT_REASONS)).to_numpy()
        return cls(
            keys=np.stack([table[name].to_numpy().astype(np.uint64) for name in KEYS]),
            errors=errors,
            cut=np.flatnonzero(is_cut & is_done),
            lengths=np.stack([column[is_done] for column in columns]),
        )


def _as_of_run(table: pa.Table, run: FoundRun, shard_idx: int) -> pa.Table:
    """Return the columns ``SMALL`` with the types that they have in this version."""
    types = {field.name: field.type for field in BASE}
    try:
        return table.select(list(SMALL)).cast(pa.schema([(name, types[name]) for name in SMALL]))
    except (LookupError, pa.ArrowException) as error:
        place = run.directory.store.describe(run.directory.names.part(shard_idx))
        raise JobError(f"{place} does not have the columns of this run: {first_line(error)}.") from None


def _first_of_kinds(texts: pa.ChunkedArray) -> Iterator[tuple[int, str]]:
    """Yield the position and kind of the first errors of each kind."""
    positions = np.flatnonzero(pc.is_valid(texts).to_numpy())
    kinds = pc.list_element(pc.split_pattern(texts.drop_null(), ": ", max_splits=1), 0)
    for kind in pc.unique(kinds).to_pylist():
        of_kind = np.flatnonzero(pc.equal(kinds, kind).to_numpy())[:MAX_OF_KIND]
        yield from ((position, kind) for position in positions[of_kind].tolist())


def _read(
    run: FoundRun, chosen: Mapping[Place, str], unreadable: list[str]
) -> Iterator[tuple[Place, Mapping[str, Any]]]:
    texts = RowTexts.of(run.manifest)
    shard: ShardRows | None = None
    for shard_idx, position in sorted(chosen):
        try:
            if shard is None or shard.shard_idx != shard_idx:
                shard = ShardRows(run, shard_idx)
            row = shard.row(position)
        except JobError as error:
            unreadable.append(str(error))
            continue
        yield (shard_idx, position), texts.to_json(row, chosen[shard_idx, position])


def _within(
    rows: dict[Place, Mapping[str, Any]], chosen: Mapping[Place, str], max_bytes: int
) -> dict[Place, Mapping[str, Any]]:
    """Keep the rows that are wanted most, as many as there is space for."""
    kept, num_bytes = {}, 0
    for place in chosen:
        if place in rows:
            num_bytes += len(to_json(rows[place]).encode(errors="replace"))
            if num_bytes > max_bytes:
                break
            kept[place] = rows[place]
    return kept
