"""A random sample of a run's finished rows, spread over its workers, and over the rows that each of them computed.

A worker computes its rows about in their order, so rows that are far apart were computed at different times.
"""

import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from job.errors import JobError, unread_reason
from job.output.looking.found import FoundRun
from job.output.parts import redone, writers
from job.output.parts.opened_part import opened_part
from job.output.parts.part_schema import REUSED_FROM, Columns
from job.output.parts.rows import from_batch
from job.output.store.names import METRICS
from job.records import Completion


@dataclass(frozen=True, slots=True, kw_only=True)
class FinishedRow:
    """A row as it is in a part."""

    completion: Completion
    worker: str
    """See ``job.output.parts.writers``."""
    host: str
    options: str
    """Sampling options in place of the run's, with which it was retried, as they are typed; empty: none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """Some finished rows, and of how many."""

    rows: Sequence[FinishedRow]
    num_finished: int
    """Rows from which these were drawn."""
    num_errors: int
    num_copied: int
    """Rows that were copied from another run: this one has not computed them."""
    copied_from: Sequence[str] = ()
    """The runs that these were copied from, if no row is left."""


Places = npt.NDArray[np.int64]
"""Rows of parts, as single numbers: the shard times ``2**32``, plus the position in its part."""


def draw_rows(run: FoundRun, number: int, seed: int) -> Sample:
    """Draw finished rows that the run has computed, in their order: all of them if there are not as many.

    Each worker gets the same number of them, as far as it has so many.

    Raises:
        JobError: a part cannot be read.
    """
    by_worker: dict[str, list[Places]] = {}
    num_errors = 0
    for shard_idx in sorted(run.directory.written_shards()):
        with _opened(run, shard_idx) as file:
            is_finished = pc.is_null(file.read(columns=["error"])["error"]).to_numpy()
            found = np.array(_writers(file, len(is_finished)), object)
        num_errors += len(is_finished) - int(is_finished.sum())
        for worker in dict.fromkeys(found):
            positions = np.flatnonzero(is_finished & (found == worker))
            by_worker.setdefault(worker, []).append(positions + (shard_idx << 32))
    num_copied = sum(map(len, by_worker.pop(writers.COPIED, ())))
    places = {worker: np.concatenate(each) for worker, each in by_worker.items()}
    rng = random.Random(seed)
    shares = shared_out(number, {worker: len(each) for worker, each in places.items()})
    drawn = [place for worker, share in shares.items() for place in spread(places[worker], share, rng)]
    return Sample(
        rows=list(_read(run, sorted(drawn))),
        num_finished=sum(map(len, places.values())),
        num_errors=num_errors,
        num_copied=num_copied,
        copied_from=_origins(run) if num_copied and not any(map(len, places.values())) else (),
    )


def _origins(run: FoundRun) -> Sequence[str]:
    names: set[str] = set()
    for shard_idx in run.directory.written_shards():
        with _opened(run, shard_idx) as file:
            if REUSED_FROM in file.schema_arrow.names:
                names.update(file.read(columns=[REUSED_FROM])[REUSED_FROM].drop_null().unique().to_pylist())
    return sorted(names)


def shared_out(number: int, sizes: Mapping[str, int]) -> Mapping[str, int]:
    """Return how many rows to draw of each worker: the same of all, and what small ones lack from the others.

    >>> shared_out(10, {"a": 100, "b": 2, "c": 100})
    {'b': 2, 'a': 4, 'c': 4}
    """
    shares, left = {}, number
    for num_before, worker in enumerate(sorted(sizes, key=lambda name: (sizes[name], name))):
        shares[worker] = min(sizes[worker], left // (len(sizes) - num_before))
        left -= shares[worker]
    return shares


def spread(places: Places, number: int, rng: random.Random) -> list[int]:
    """Return some places, one at random of each of as many pieces of equal size."""
    borders = [len(places) * idx // number for idx in range(number + 1)] if number else [0]
    return [int(places[rng.randrange(low, high)]) for low, high in pairwise(borders)]


def _read(run: FoundRun, places: Sequence[int]) -> Iterator[FinishedRow]:
    hosts = writers.hosts_of(
        entry.name.removesuffix(".jsonl") for entry in run.directory.store.list(METRICS) if entry.name[0] != "."
    )
    names = [field.name for field in Columns.of(run.manifest).of_completions]
    by_shard: dict[int, list[int]] = {}
    for place in places:
        by_shard.setdefault(place >> 32, []).append(place & 0xFFFFFFFF)
    for shard_idx, positions in by_shard.items():
        with _opened(run, shard_idx) as file:
            found = _writers(file, file.metadata.num_rows)
            options = redone.from_metadata(file.metadata.metadata or {})
            for position, completion in zip(positions, _rows_at(file, positions, names), strict=True):
                worker = found[position]
                yield FinishedRow(
                    completion=completion,
                    worker=worker,
                    host=hosts.get(worker, writers.UNKNOWN),
                    options=options.get(completion.key, ""),
                )


def _rows_at(file: pq.ParquetFile, positions: Sequence[int], names: list[str]) -> Iterator[Completion]:
    """Yield the rows at some positions, in their order, reading only the row groups that they are in."""
    begin = 0
    for group_idx in range(file.num_row_groups):
        end = begin + file.metadata.row_group(group_idx).num_rows
        if own := [position - begin for position in positions if begin <= position < end]:
            for batch in file.read_row_group(group_idx, columns=names).take(own).combine_chunks().to_batches():
                yield from from_batch(batch)
        begin = end


def _writers(file: pq.ParquetFile, num_rows: int) -> Sequence[str]:
    return writers.from_metadata(file.metadata.metadata or {}, num_rows)


@contextmanager
def _opened(run: FoundRun, shard_idx: int) -> Iterator[pq.ParquetFile]:
    """Open a part.

    Raises:
        JobError: it cannot be read.
    """
    try:
        with opened_part(run.directory, shard_idx) as file:
            yield file
    except (OSError, pa.ArrowException, ValueError) as error:
        part = run.directory.store.describe(run.directory.names.part(shard_idx))
        raise JobError(
            f"{part} cannot be read: {unread_reason(error)}. job verify without --recompute says what is wrong with it."
        ) from None
