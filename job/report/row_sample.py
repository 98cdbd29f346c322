"""Rows of a run to look at: some at random, some of each kind of error, some that were cut, within a number of bytes.

One pass over the small columns of all rows gives their lengths, too. Only the rows that are chosen are read whole.
"""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from job.errors import JobError
from job.output.looking.found import FoundRun
from job.output.looking.shown_rows import ShardRows
from job.output.parts.part_schema import BASE, Columns
from job.records import CUT_REASONS, RowError
from job.report.page.embedded import to_json

MAX_RANDOM = 1_000
MAX_OF_KIND = 30
"""Rows of each kind of error, and rows that were cut: the first of them."""

MAX_BYTES = 3_000_000
"""Of all rows together, as they are in a page, where a ``<`` takes six bytes."""

MAX_TEXT = 4_000
"""Characters of one text; of a longer one, the beginning and the end."""

MAX_VALUE = 400
"""Characters of a value of any other column."""

TEXTS = ("prompt", "reasoning", "completion", "error")
"""Columns that are shown in full."""

RANDOM, CUT = "random", "cut"

Place = tuple[int, int]
"""A shard, and a position among its rows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RowSample:
    """Some rows, and the lengths of all."""

    rows: tuple[Mapping[str, Any], ...]
    """In their order. JSON values: the texts and numbers of ``TEXTS`` and ``BASE``, ``why`` the row was chosen, and
    ``more``, the other columns."""
    num_rows: int
    """Rows to choose from."""
    num_random: int
    """How many of ``rows`` were chosen at random."""
    prompt_tokens: npt.NDArray[np.int64]
    """[rows] of those without an error."""
    completion_tokens: npt.NDArray[np.int64]
    unreadable: tuple[str, ...]
    """Why some shards could not be read."""


class _Chooser:
    """Chooses places, shard by shard."""

    def __init__(self, max_random: int) -> None:
        self._random = np.random.default_rng(0)
        self._max_random = max_random
        self._keys: npt.NDArray[np.float64] = np.empty(0)
        self._places: npt.NDArray[np.int64] = np.empty((0, 2), np.int64)
        self._of_kind: Counter[str] = Counter()
        self._special: dict[Place, str] = {}

    def add(self, shard_idx: int, errors: Sequence[tuple[int, str]], cut: npt.NDArray[np.int64], num_rows: int) -> None:
        """Choose from one shard.

        Args:
            errors: position and kind of each.
            cut: positions of those that were cut.
        """
        for position, kind in [*errors, *((int(position), CUT) for position in cut[:MAX_OF_KIND])]:
            if self._of_kind[kind] < MAX_OF_KIND:
                self._of_kind[kind] += 1
                self._special[shard_idx, position] = kind
        # The rows with the lowest of random keys are a sample of all.
        keys = np.concatenate([self._keys, self._random.random(num_rows)])
        new = np.stack([np.full(num_rows, shard_idx), np.arange(num_rows)], axis=1)
        places = np.concatenate([self._places, new])
        kept = np.argsort(keys)[: self._max_random]
        self._keys, self._places = keys[kept], places[kept]

    def chosen(self) -> dict[Place, str]:
        """Return the places and why, the most wanted first: what is special and what is at random by turns."""
        places = ((int(shard_idx), int(position)) for shard_idx, position in self._places)
        at_random = [(place, RANDOM) for place in places if place not in self._special]
        both = zip_longest(self._special.items(), at_random)
        return dict(found for pair in both for found in pair if found is not None)


def sample_rows(run: FoundRun, *, max_random: int = MAX_RANDOM, max_bytes: int = MAX_BYTES) -> RowSample:
    """Read the lengths of all finished rows, those in journals included, and some rows. Damaged shards are left out."""
    chooser, lengths, unreadable, num_rows = _Chooser(max_random), [], [], 0
    for shard_idx in sorted(run.directory.written_shards() | run.directory.journaled_shards()):
        try:
            small = _SmallColumns.read(run, shard_idx)
        except JobError as error:
            unreadable.append(str(error))
            continue
        num_rows += small.num_rows
        lengths.append(small.lengths)
        chooser.add(shard_idx, small.errors, small.cut, small.num_rows)
    chosen = chooser.chosen()
    rows = _within(dict(_read(run, chosen, unreadable)), chosen, max_bytes)
    both = np.concatenate(lengths, axis=1) if lengths else np.empty((2, 0), np.int64)
    return RowSample(
        rows=tuple(row for _, row in sorted(rows.items())),
        num_rows=num_rows,
        num_random=sum(row["why"] == RANDOM for row in rows.values()),
        prompt_tokens=both[0],
        completion_tokens=both[1],
        unreadable=tuple(dict.fromkeys(unreadable)),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _SmallColumns:
    """What is to be known of every row of a shard."""

    num_rows: int
    errors: list[tuple[int, str]]
    """Position and kind of each; at most ``MAX_OF_KIND`` of a kind."""
    cut: npt.NDArray[np.int64]
    lengths: npt.NDArray[np.int64]
    """[2, rows without an error]: tokens of the prompt and the completion."""

    @classmethod
    def read(cls, run: FoundRun, shard_idx: int) -> "_SmallColumns":
        table = ShardRows(run, shard_idx).columns(
            ["finish_reason", "error", "num_prompt_tokens", "num_completion_tokens"]
        )
        texts = table["error"]
        positions = np.flatnonzero(pc.is_valid(texts).to_numpy())
        counts: Counter[str] = Counter()
        errors = []
        for position in positions.tolist():
            kind = RowError.parse(texts[position].as_py()).kind
            counts[kind] += 1
            if counts[kind] <= MAX_OF_KIND:
                errors.append((position, kind))
        is_done = np.ones(len(table), np.bool_)
        is_done[positions] = False
        columns = [table[name].to_numpy().astype(np.int64) for name in table.column_names[2:]]
        is_cut = pc.is_in(table["finish_reason"], pa.array(CUT_REASONS)).to_numpy()
        return cls(
            num_rows=len(table),
            errors=errors,
            cut=np.flatnonzero(is_cut & is_done),
            lengths=np.stack([column[is_done] for column in columns]),
        )


def _read(
    run: FoundRun, chosen: Mapping[Place, str], unreadable: list[str]
) -> Iterator[tuple[Place, Mapping[str, Any]]]:
    known = Columns.of(run.manifest).names
    shard: ShardRows | None = None
    for shard_idx, position in sorted(chosen):
        try:
            if shard is None or shard.shard_idx != shard_idx:
                shard = ShardRows(run, shard_idx)
            row = shard.row(position)
        except JobError as error:
            unreadable.append(str(error))
            continue
        yield (shard_idx, position), _to_json(row, chosen[shard_idx, position], known)


def _to_json(row: Mapping[str, Any], why: str, known: frozenset[str]) -> dict[str, Any]:
    shown = {name: row[name] for name in BASE.names if name in row and name != "error_kind"}
    shown |= {name: row[name] for name in TEXTS if name in row and name in known}
    more = {name: value for name, value in row.items() if name not in shown and name != "error_kind"}
    return {
        **{name: shorten(value, MAX_TEXT) if isinstance(value, str) else value for name, value in shown.items()},
        "why": why,
        "more": {name: _as_text(value) for name, value in more.items() if value is not None},
    }


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
