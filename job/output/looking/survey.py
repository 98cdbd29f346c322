"""What a run directory contains right now: parts, leases, markers. Decides nothing and changes nothing.

A survey takes time, and workers go on meanwhile. Leases are listed before parts, so that a shard that is finished in
between counts as done, not as free.
"""

import contextlib
import functools
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from job.errors import UsageError
from job.output.looking.found import FoundRun
from job.output.sharing.settings import RunSettings, read_settings
from job.output.sharing.worker import WorkerId
from job.output.store.names import LEASES, SCATTERED
from job.output.store.store import Store

NUM_THREADS = 32
"""On a network file system, reading a lease takes a round trip."""

WAITING_SECS = 10.0
"""A waiting worker touches its clock every second; one that has not done so for this long is dead. In a store that asks
for pauses, it does so six times in one of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SeenLease:
    """A lease: which worker holds a shard, or a slice of one."""

    shard_idx: int
    """``SCATTERED``: it is of rows of all shards."""
    slice_idx: int | None
    """None: the whole shard, whose part the holder is to write."""
    holder: WorkerId | None
    """None: the file cannot be read."""
    silent_secs: float
    is_dead: bool
    """Whether the holder was a process of this host that no longer runs."""
    is_stale: bool
    """Whether a worker that finds this lease takes it over."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Survey:
    """One look at a run directory."""

    parts: Mapping[int, str]
    """Shards that have a part, and the part's identity: it changes when the part is replaced."""
    to_retry: frozenset[int]
    """Those of them with error rows to be retried."""
    leases: Sequence[SeenLease]
    clocks: Mapping[str, float]
    """Worker to the seconds since it last touched its clock, as it does all the time while it waits for leases."""
    now: float
    """Unix time by the clock that stamps the files, or the best estimate of it."""
    is_store_time: bool
    """False: nothing can be written here, so ``now`` is this machine's time."""
    settings: RunSettings
    waiting_secs: float = WAITING_SECS
    """A clock that was touched more recently belongs to a live worker."""

    def is_done(self, shard_idx: int) -> bool:
        """Whether nothing is left to do of a shard."""
        return shard_idx in self.parts and shard_idx not in self.to_retry


def survey(run: FoundRun) -> Survey:
    """Survey a run directory.

    Raises:
        OSError: it cannot be listed.
    """
    directory, store = run.directory, run.directory.store
    settings = read_settings(store)
    found = _read_leases(store)
    to_retry = directory.shards_to_retry()
    parts = {shard_idx: entry.identity for shard_idx, entry in directory.parts()}
    is_done = len(parts) == run.plan.num_shards and not to_retry
    clocks = dict(_clocks(store))
    clock = None if is_done else store.now()
    stamps = [*clocks.values(), *(written for _, (_, written) in found)]
    # The store's clock shows no less than any time that it has stamped.
    now = max([time.time(), *stamps]) if clock is None else clock
    return Survey(
        parts=parts,
        to_retry=frozenset(to_retry & parts.keys()),
        leases=[lease for lease in _judge(found, now, settings) if not (is_done and lease.shard_idx == SCATTERED)],
        clocks={worker_id: max(0.0, now - written) for worker_id, written in clocks.items()},
        now=now,
        is_store_time=clock is not None,
        settings=settings,
        waiting_secs=max(WAITING_SECS, store.pause_secs),
    )


def _names(store: Store, directory: str, pattern: str) -> Iterator[str]:
    return (entry.name for entry in store.list(directory) if re.fullmatch(pattern, entry.name, re.ASCII))


Lease = tuple[WorkerId | None, float]
"""Holder, and time of the last heartbeat."""


def _read_leases(store: Store) -> list[tuple[str, Lease]]:
    """Return each lease's name, holder and time of its last heartbeat."""
    names = sorted(_names(store, LEASES, r"\d+(\.\d+)?|[a-z]+\.[^.]+\.\d+"))
    with ThreadPoolExecutor(NUM_THREADS) as pool:
        found = zip(names, pool.map(lambda name: _read_lease(store, f"{LEASES}/{name}"), names), strict=True)
        return [(name, lease) for name, lease in found if lease is not None]


def _read_lease(store: Store, name: str) -> Lease | None:
    with contextlib.suppress(FileNotFoundError):  # given back meanwhile
        try:
            content, stamp = store.look(name)
        except PermissionError:
            return None, store.stamp(name).written
        return _parse(content), stamp.written
    return None


_parse = functools.lru_cache(maxsize=10_000)(WorkerId.from_json)
"""Cached, since many leases have the same contents."""


def _clocks(store: Store) -> Iterator[tuple[str, float]]:
    for name in _names(store, LEASES, r"\.clock-.+"):
        with contextlib.suppress(FileNotFoundError):
            yield name.removeprefix(".clock-"), store.stamp(f"{LEASES}/{name}").written


def _judge(found: Sequence[tuple[str, Lease]], now: float, settings: RunSettings) -> Iterator[SeenLease]:
    dead = {holder: holder.is_dead() for holder in {holder for _, (holder, _) in found} if holder is not None}
    for name, (holder, written) in found:
        shard, _, piece = name.partition(".")
        piece = piece.rpartition(".")[2]
        silent_secs, is_dead = max(0.0, now - written), holder is not None and dead[holder]
        yield SeenLease(
            shard_idx=int(shard) if shard.isdecimal() else SCATTERED,
            slice_idx=int(piece) if piece else None,
            holder=holder,
            silent_secs=silent_secs,
            is_dead=is_dead,
            is_stale=is_dead or silent_secs >= settings.lease_timeout_secs,
        )


def refuse_if_alive(run: FoundRun) -> None:
    """Refuse what must not happen beside workers.

    Raises:
        UsageError: some are active.
    """
    seen, names = survey(run), run.directory.names
    ages = {
        names.lease(lease.shard_idx, lease.slice_idx): lease.silent_secs for lease in seen.leases if not lease.is_stale
    }
    ages |= {names.clock(worker_id): age for worker_id, age in seen.clocks.items() if age < seen.waiting_secs}
    if ages:
        name, age = next(iter(ages.items()))
        raise UsageError(
            f"Workers are still active on this run ({run.directory.store.describe(name)} was refreshed {age:.0f} s "
            f"ago). Stop them or wait for them to finish; leases of killed workers expire after "
            f"{seen.settings.lease_timeout_secs:.0f} s."
        )
