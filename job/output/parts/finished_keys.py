"""Which completions of a run are finished, in parts or in journals: the keys alone, of the whole run at once."""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from job.output.parts.journal import JournalReader
from job.output.parts.order import Rows
from job.output.parts.plan import Plan
from job.output.store.directory import RunDirectory
from job.records import SampleKey


class FinishedKeys:
    """A byte for each completion. Rows of a part that are to be retried count as finished."""

    def __init__(self, directory: RunDirectory, plan: Plan, note: Callable[[str], None] = lambda _: None) -> None:
        """Nothing is read yet.

        Args:
            note: shows a message to the user.
        """
        self._directory, self._plan, self._note = directory, plan, note
        self._is_done: npt.NDArray[np.bool_] = np.zeros((plan.num_rows, plan.num_samples), np.bool_)
        self._parts: set[int] = set()
        self._readers: dict[str, JournalReader] = {}
        self._given_up: set[str] = set()

    def look(self) -> None:
        """Add what is new."""
        # First journals: one that is deleted in between belongs to a shard whose part is then in the list.
        for _, name, _ in list(self._directory.all_journals()):
            self._read(name)
        for shard_idx in self._directory.written_shards() - self._parts:
            rows = self._plan.rows(shard_idx)
            self._is_done[rows.start : rows.stop] = True
            self._parts.add(shard_idx)

    def _read(self, name: str) -> None:
        reader = self._readers.setdefault(name, JournalReader.of(self._directory, name))
        num_rows, num_samples = self._is_done.shape
        for batch in reader.read_batches():
            rows, samples = (batch[column].to_numpy() for column in ("row_idx", "sample_idx"))
            is_valid = (rows >= 0) & (rows < num_rows) & (samples >= 0) & (samples < num_samples)
            self._is_done[rows[is_valid], samples[is_valid]] = True
        if reader.damage is not None and name not in self._given_up:
            self._given_up.add(name)
            self._note(reader.damage)

    def add(self, key: SampleKey) -> None:
        """Add a completion that was finished just now."""
        self._is_done[key] = True

    def has(self, key: SampleKey) -> bool:
        """Whether a completion is finished."""
        return bool(self._is_done[key])

    def are_done(self, rows: Rows) -> npt.NDArray[np.bool_]:
        """Return for each of these rows whether all of its completions are finished: [rows] bool."""
        found: npt.NDArray[np.bool_] = np.atleast_1d(np.all(self._is_done[rows], axis=1))
        return found

    def done_rows(self) -> Rows:
        """Return the rows all of whose completions are finished, in ascending order."""
        return np.flatnonzero(np.all(self._is_done, axis=1)).astype(np.int64)
