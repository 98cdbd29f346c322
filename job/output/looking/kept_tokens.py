"""How much is kept of rows that are in flight, or were when their workers died: what is not generated again.

Read like journals: only what is new since the last look, and within a time budget.
"""

import time
from collections.abc import Callable

import pyarrow as pa
import pyarrow.compute as pc

from job.output.parts.batch_log import BatchReader
from job.output.parts.partials import SCHEMA
from job.output.parts.plan import Plan
from job.output.store.directory import RunDirectory
from job.output.store.names import SCATTERED
from job.records import SampleKey

Lengths = dict[SampleKey, tuple[int, int]]
"""Completion to the number of its latest draw, and the tokens of that."""


class KeptTokens:
    """Counts the rows in flight and their tokens. Remembers what it has read."""

    def __init__(self, directory: RunDirectory, plan: Plan) -> None:
        """Start with nothing read."""
        self._directory, self._plan = directory, plan
        self._logs: dict[str, tuple[BatchReader, Lengths]] = {}

    def look(self, is_finished: Callable[[int, SampleKey], bool], *, budget_secs: float) -> tuple[int, int]:
        """Return the number of rows of which something is kept, and of their tokens.

        Args:
            is_finished: whether a row of a shard is finished, so that its tokens do not count.

        Raises:
            OSError: the directory cannot be listed.
        """
        until, longest = time.monotonic() + budget_secs, dict[tuple[int, SampleKey], tuple[int, int]]()
        shards = {name: shard_idx for shard_idx, name, _ in self._directory.all_partials()}
        self._logs = {name: self._logs.get(name) or self._new(name) for name in shards}
        for name, (reader, lengths) in sorted(self._logs.items()):
            if time.monotonic() < until:
                _read(reader, lengths)
            for key, length in lengths.items():
                place = (self._plan.shard_of(key[0]) if shards[name] == SCATTERED else shards[name], key)
                longest[place] = max(length, longest.get(place, length))
        found = [num_tokens for place, (_, num_tokens) in longest.items() if not is_finished(*place)]
        return len(found), sum(found)

    def _new(self, name: str) -> tuple[BatchReader, Lengths]:
        directory = self._directory
        return BatchReader(directory.store, name, SCHEMA.names, directory.names.num_sealed_bytes(name)), {}


def _read(reader: BatchReader, lengths: Lengths) -> None:
    """Read what is new in a log. One that cannot be read, or no longer, is left as it is."""
    try:
        batches = list(reader.read_batches())
    except OSError:
        return
    if reader.has_restarted:
        reader.has_restarted = False
        lengths.clear()
    for batch in batches:
        ends = pc.add(batch["start"], pc.list_value_length(batch["token_ids"]))
        columns = [batch[name] for name in ("row_idx", "sample_idx", "attempt")]
        rows = zip(*(pa.array(column).to_pylist() for column in (*columns, ends)), strict=True)
        for row_idx, sample_idx, attempt, end in rows:
            key = (row_idx, sample_idx)
            lengths[key] = max((attempt, end), lengths.get(key, (0, 0)))
