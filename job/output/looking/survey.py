"""What lies in a run directory right now: parts, leases, journals, markers. Decides nothing, changes nothing.

A look takes time, and workers go on meanwhile. Leases are listed before parts, so that a shard which is finished in
between counts as done and not as free.
"""

import contextlib
import functools
import os
import re
import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from job.output.looking.found import FoundRun
from job.output.sharing.leases import STALE_SECS, WorkerId
from job.output.store.local import UnlessGone
from job.output.store.many_files import read_many
from job.output.store.paths import RunPaths

MAX_LEASE_BYTES = 4096

WAITING_SECS = 10.0
"""A worker that waits compares its clock every second; one that has not for so long is gone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SeenLease:
    """Who holds a shard, or a slice of one."""

    shard_idx: int
    slice_idx: int | None
    """None: the whole shard, whose part the holder is to write."""
    holder: WorkerId | None
    """None: the file cannot be read."""
    silent_secs: float
    is_dead: bool
    """Whether the holder was a process of this host that runs no more."""

    @property
    def is_stale(self) -> bool:
        """Whether a worker that finds this lease takes it over."""
        return self.is_dead or self.silent_secs >= STALE_SECS


@dataclass(frozen=True, slots=True, kw_only=True)
class Survey:
    """One look at a run directory."""

    parts: Mapping[int, int]
    """Shards that have a part, and the inode of the file: it changes when the part is replaced."""
    to_retry: frozenset[int]
    """Those of them some of whose error rows are to be done again."""
    journals: frozenset[int]
    """Shards with finished rows outside of a part."""
    leases: Sequence[SeenLease]
    clocks: Mapping[str, float]
    """Worker to the seconds since it last compared its clock: who waits for others' leases does so all the time."""
    now: float
    """Unix time by the clock that stamps the files, as well as it is known."""
    is_file_system_time: bool
    """False: nothing can be written here, so ``now`` is this machine's time."""

    def is_done(self, shard_idx: int) -> bool:
        """Whether nothing is left to do of a shard."""
        return shard_idx in self.parts and shard_idx not in self.to_retry


def survey(run: FoundRun) -> Survey:
    """Look at a run directory.

    Raises:
        OSError: it cannot be listed.
    """
    paths = run.paths
    found = _read_leases(paths)
    journals = {int(name.partition(".")[0]) for name in _names(paths.journal_dir, r"\d+\..+\.arrows")}
    to_retry = {int(name) for name in _names(paths.retry_dir, r"\d+")}
    parts = dict(_parts(paths))
    is_done = len(parts) == run.plan.num_shards and not to_retry
    clocks = dict(_clocks(paths.lease_dir))
    clock = None if is_done else _file_system_time(paths.lease_dir)
    stamps = [*clocks.values(), *(mtime for _, (_, mtime) in found)]
    now = max([time.time(), *stamps]) if clock is None else clock
    return Survey(
        parts=parts,
        to_retry=frozenset(to_retry & parts.keys()),
        journals=frozenset(journals),
        leases=[*_judge(found, now)],
        clocks={worker_id: max(0.0, now - mtime) for worker_id, mtime in clocks.items()},
        now=now,
        is_file_system_time=clock is not None,
    )


def _names(directory: Path, pattern: str) -> Iterator[str]:
    with contextlib.suppress(FileNotFoundError), os.scandir(directory) as entries:
        yield from (entry.name for entry in entries if re.fullmatch(pattern, entry.name, re.ASCII))


def _parts(paths: RunPaths) -> Iterator[tuple[int, int]]:
    with os.scandir(paths.root) as entries:
        for entry in entries:
            if (shard_idx := paths.shard_of(entry.name)) is not None:
                yield shard_idx, entry.inode()


def _read_leases(paths: RunPaths) -> list[tuple[str, tuple[WorkerId | None, float]]]:
    """Return each lease's name, holder and time of its last heartbeat. Names with a dot in front are temporary."""
    directory = str(paths.lease_dir)
    names = sorted(_names(paths.lease_dir, r"\d+(\.\d+)?"))
    found = read_many(lambda name: _read_lease(f"{directory}/{name}"), names)
    return [(name, lease) for name, lease in found if lease is not None]


def _read_lease(path: str) -> tuple[WorkerId | None, float] | None:
    with UnlessGone():  # given back meanwhile
        try:
            fd = os.open(path, os.O_RDONLY)  # opened first: over NFS, that makes the client ask for the time anew
        except PermissionError:
            return None, Path(path).stat().st_mtime
        try:
            return _parse(os.read(fd, MAX_LEASE_BYTES)), os.fstat(fd).st_mtime
        finally:
            os.close(fd)
    return None


_parse = functools.lru_cache(maxsize=10_000)(WorkerId.from_json)
"""Many leases say the same."""


def _clocks(directory: Path) -> Iterator[tuple[str, float]]:
    for name in _names(directory, r"\.clock-.+"):
        with contextlib.suppress(FileNotFoundError):
            yield name.removeprefix(".clock-"), (directory / name).stat().st_mtime


def _judge(found: Sequence[tuple[str, tuple[WorkerId | None, float]]], now: float) -> Iterator[SeenLease]:
    dead = {holder: holder.is_dead() for holder in {holder for _, (holder, _) in found} if holder is not None}
    for name, (holder, mtime) in found:
        shard, _, piece = name.partition(".")
        yield SeenLease(
            shard_idx=int(shard),
            slice_idx=int(piece) if piece else None,
            holder=holder,
            silent_secs=max(0.0, now - mtime),
            is_dead=holder is not None and dead[holder],
        )


def _file_system_time(directory: Path) -> float | None:
    """Return the time as the file system stamps it, or None if nothing can be written there.

    Only a file that is written now tells it; this one lives for a moment.
    """
    probe = directory / f".now-{secrets.token_hex(8)}"
    try:
        probe.touch(exist_ok=False)
        os.utime(probe)  # without values: the server stamps it
        return probe.stat().st_mtime
    except OSError:
        return None
    finally:
        with contextlib.suppress(OSError):
            probe.unlink(missing_ok=True)
