"""A run directory: a store, the names in it, and the questions that take several names to answer."""

import contextlib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from job.output.store.names import CARD, JOURNALS, LEASES, METRICS, RETRIES, SCATTERED, RunNames, generation_of
from job.output.store.store import Entry, Store

OLD_SECS = 3600.0
"""No process leaves an object half-written for this long."""


@dataclass(frozen=True, slots=True)
class RunDirectory:
    """The objects of one run."""

    store: Store
    names: RunNames

    def of_retry(self, retry_id: str) -> "RunDirectory":
        """Return the same directory for those who work on a shard under a retry, or without one (empty)."""
        return replace(self, names=replace(self.names, retry_id=retry_id))

    def prepare(self) -> None:
        """Make sure that a worker can write wherever it has to.

        Raises:
            OSError: it cannot, or the disk is full.
        """
        self.store.prepare(["", self.names.part_dir, JOURNALS, LEASES, METRICS])

    def parts(self) -> Iterator[tuple[int, Entry]]:
        """Yield the shards that have a part, marked for a retry or not, from one listing."""
        for entry in self.store.list(self.names.part_dir):
            if (shard_idx := self.names.shard_of(entry.name)) is not None:
                yield shard_idx, entry

    def written_shards(self) -> set[int]:
        """Return the shards that have a part, marked for a retry or not."""
        return {shard_idx for shard_idx, _ in self.parts()}

    def shards_to_retry(self) -> set[int]:
        """Return the shards with a marker for a retry."""
        names = (entry.name for entry in self.store.list(RETRIES))
        return {int(name) for name in names if re.fullmatch(r"\d+", name, re.ASCII)}

    def done_shards(self) -> set[int]:
        """Return the shards that are done, from one listing of each directory."""
        marked = self.shards_to_retry()
        return self.written_shards() - marked

    def is_done(self, shard_idx: int) -> bool:
        """Whether a shard's part exists and none of its rows is to be retried."""
        return self.store.exists(self.names.part(shard_idx)) and not self.store.exists(self.names.retry(shard_idx))

    def journals(self, shard_idx: int) -> list[str]:
        """Return the journals that any worker left for a shard."""
        return self._logs(shard_idx, ".arrows")

    def partials(self, shard_idx: int) -> list[str]:
        """Return what any worker left of a shard's rows that were in flight."""
        return self._logs(shard_idx, ".partials")

    def shards_in_flight(self) -> set[int]:
        """Return the shards of which any worker left rows that were in flight."""
        return self._shards_with(".partials")

    def cut_logs(self, shard_idx: int) -> list[str]:
        """Return what any worker left of a shard's completions that were cut."""
        return self._logs(shard_idx, ".cut")

    def logs(self, shard_idx: int) -> list[str]:
        """Return all that any worker left of an unfinished shard, whether it counts or not.

        Those of later generations are left out: they belong to workers that know more of the run than this process.
        """
        return [name for name in self._logs(shard_idx, "") if generation_of(name) <= self.names.generation]

    def _logs(self, shard_idx: int, ending: str) -> list[str]:
        """Return the logs of a shard with an ending, as far as they count; with none, all."""
        start = f"{self.names.number(shard_idx)}."
        names = sorted(entry.name for entry in self.store.list(JOURNALS) if entry.name.startswith(start))
        found = [f"{JOURNALS}/{name}" for name in names if name.endswith(ending)]
        return [name for name in found if not ending or self.names.counts(name)]

    def all_journals(self) -> Iterator[tuple[int, str, Entry]]:
        """Yield the journals of all shards that count: the shard, the name, and the entry of one listing."""
        return self._all_logs(".arrows")

    def all_partials(self) -> Iterator[tuple[int, str, Entry]]:
        """Yield in the same way what rows in flight have. The shard may be ``SCATTERED``."""
        return self._all_logs(".partials")

    def all_cut_logs(self) -> Iterator[tuple[int, str, Entry]]:
        """Yield in the same way what was cut."""
        return self._all_logs(".cut")

    def _all_logs(self, ending: str) -> Iterator[tuple[int, str, Entry]]:
        pattern = rf"(\d+|{self.names.number(SCATTERED)})\..+{re.escape(ending)}"
        for entry in self.store.list(JOURNALS):
            match, name = re.fullmatch(pattern, entry.name, re.ASCII), f"{JOURNALS}/{entry.name}"
            if match is not None and self.names.counts(name):
                shard_idx = int(match[1]) if match[1].isdecimal() else SCATTERED
                if shard_idx < self.names.num_shards:
                    yield shard_idx, name, entry

    def unused(self, names: Iterable[str]) -> str:
        """Return the first of these names that no object has."""
        return next(name for name in names if not self.store.exists(name))

    def journaled_shards(self) -> set[int]:
        """Return the shards for which any worker left a journal."""
        return self._shards_with(".arrows")

    def _shards_with(self, ending: str) -> set[int]:
        """Return the shards for which any worker left a log with this ending that counts."""
        return {shard_idx for shard_idx, _, _ in self._all_logs(ending)} - {SCATTERED}

    def sweep(self) -> None:
        """Remove the leftovers of dead workers, and files that live ones no longer need. Every shard must be done.

        What belongs to shards that we do not know stays: the run may have grown since this process began. A draft is
        kept until it is old, since a live process may be about to rename it.
        """
        for entry in self.store.list(JOURNALS):
            if not self._is_of_later_shard(entry.name) and generation_of(entry.name) <= self.names.generation:
                self._delete(f"{JOURNALS}/{entry.name}")
        for entry in self.store.list(LEASES):
            # A worker that still needs its clock creates it again. The lease of the conclusion is left to its holder.
            is_of_shard = entry.name[:1].isdecimal() and not self._is_of_later_shard(entry.name)
            if entry.name.startswith((".clock-", f"{self.names.number(SCATTERED)}.")) or is_of_shard:
                self._delete(f"{LEASES}/{entry.name}")
        for directory in ("", self.names.part_dir, LEASES, METRICS, RETRIES):
            self.store.discard(directory, "*", min_age_secs=OLD_SECS)

    def discard_drafts(self) -> None:
        """Remove drafts of parts and of the card. The final files must exist; a process that is still writing one
        notices.
        """
        for pattern in ("part-*", CARD):
            self.store.discard("", pattern)

    def _is_of_later_shard(self, name: str) -> bool:
        match = re.match(r"\d+", name, re.ASCII)
        return match is not None and int(match[0]) >= self.names.num_shards

    def _delete(self, name: str) -> None:
        with contextlib.suppress(OSError):  # only its owner may delete it, or another worker was faster
            self.store.delete(name)
