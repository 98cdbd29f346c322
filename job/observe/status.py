"""The status of a run as seen from outside, and its JSON values for programs."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Worker:
    """A worker whose heartbeat is recent."""

    worker_id: str
    host: str
    pid: int
    state: str
    """``working`` on its own shards, ``helping`` with those of other workers, or ``waiting`` for work."""
    shards: Sequence[int]
    """Shards whose leases it holds."""
    helps_with: Sequence[int]
    """Shards of other workers of which it holds slices."""
    heartbeat_age_secs: float
    figures_age_secs: float | None
    """Seconds since it last reported figures; None if it has not yet."""
    num_rows: int
    """Rows finished since it started."""
    tokens_per_sec: float


@dataclass(frozen=True, slots=True, kw_only=True)
class StaleLease:
    """A lease whose worker is dead or has been silent for too long."""

    shard_idx: int
    slice_idx: int | None
    worker_id: str
    host: str
    silent_secs: float
    is_dead: bool
    """Whether its process is known to have ended."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """Where a run was published last."""

    repository: str
    commit: str
    parts: int
    """How many of its parts are there as they are now."""

    def describe(self, num_shards: int) -> str:
        """Return it as text."""
        share = f"all {num_shards:,}" if self.parts == num_shards else f"{self.parts:,} of {num_shards:,}"
        return f"{self.repository}: {share} parts"


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """A run at one moment. ``num_done + num_in_work + num_stale + num_free`` is ``num_shards``."""

    output: str
    model: str
    adapters: Sequence[str]
    """Merged into the model."""
    dataset: str
    created: str
    """When the run was started for the first time."""
    elapsed_secs: float | None
    """Seconds from then to now if a worker is active, else to the last figures of a worker. None if unknown."""
    num_shards: int
    num_done: int
    num_in_work: int
    num_stale: int
    """Shards whose holder is dead or silent: the next worker that looks takes them over."""
    num_free: int
    is_scattered: bool
    """Whether rows of all shards are computed now, in random order, so that all shards that are left are in work."""
    num_to_retry: int
    """Shards that have a part, but are not done because some of its error rows will be retried."""
    num_samples: int
    """Output rows of each row of the dataset."""
    total_rows: int
    """Output rows, as all numbers of rows here."""
    num_rows: int
    """Finished rows: those in parts, without those to be retried, and those in the journals that were read."""
    num_part_rows: int
    num_kept_rows: int
    """Rows that are not finished, but some of whose tokens are kept, so that they are not generated again."""
    num_kept_tokens: int
    """These tokens."""
    errors: Mapping[str, int]
    """Error kind to number of finished rows, in the parts and journals that were read."""
    num_part_errors: int
    """How many of these errors are in parts."""
    first_errors: Mapping[str, tuple[int, str]]
    """Error kind to the lowest row index that has it, and its detail."""
    finish_reasons: Mapping[str, int]
    tallies: Mapping[str, Mapping[str, int]]
    """What the run's modes count, by name."""
    outcome: Sequence[tuple[str, str]]
    """What came out, as the run's modes describe it: titles and lines."""
    num_prompt_tokens: int
    num_completion_tokens: int
    num_parts: int
    num_parts_read: int
    unreadable_parts: Sequence[str]
    num_journals: int
    num_journals_read: int
    damaged_journals: Sequence[str]
    """Why some journals, or the rest of them, cannot be used."""
    workers: Sequence[Worker]
    stale_leases: Sequence[StaleLease]
    tokens_per_sec: float
    eta_secs: float | None
    published: Published | None
    left: str
    """Why the last worker that was active ended; empty if it has not, or cannot say."""
    is_store_time: bool
    """False if ages are measured by this machine's clock, because the run directory is not writable."""

    @property
    def is_done(self) -> bool:
        """Whether every shard is done."""
        return self.num_done == self.num_shards

    @property
    def is_partial(self) -> bool:
        """Whether some parts or journals have not been read yet, for lack of time."""
        num_parts_seen = self.num_parts_read + len(self.unreadable_parts)
        return num_parts_seen < self.num_parts or self.num_journals_read < self.num_journals

    @property
    def advice(self) -> str:
        """What to do next, in one line."""
        if self.unreadable_parts:
            return f"Some parts cannot be read: job verify {self.output} lists them, with reasons."
        if self.is_done:
            return f"Done: every row is in a part. job verify {self.output} checks them all."
        if self.workers:
            takeover = " Live workers take over from dead ones." if self.stale_leases else ""
            return f"Running. Nothing for you to do.{takeover}"
        if self.left.startswith("--stop-after"):
            return f"Stopped at {self.left}, as asked. To go on, ask for more, or run the same command without it."
        return (
            "No worker is active: run the same command to continue. "
            "(A launch that is still loading its model is not shown.)"
        )

    def to_dict(self) -> dict[str, object]:
        """Return JSON values. The names are stable: programs rely on them."""
        return {
            "output": self.output,
            "model": self.model,
            "adapters": list(self.adapters),
            "dataset": self.dataset,
            "started": self.created,
            "elapsed_secs": self.elapsed_secs,
            "done": self.is_done,
            "shards": {
                "total": self.num_shards,
                "done": self.num_done,
                "in_work": self.num_in_work,
                "stale": self.num_stale,
                "free": self.num_free,
                "to_retry": self.num_to_retry,
            },
            "rows": {
                "total": self.total_rows,
                "done": self.num_rows,
                "in_parts": self.num_part_rows,
                "samples_per_row": self.num_samples,
            },
            "in_flight": {"rows": self.num_kept_rows, "tokens": self.num_kept_tokens},
            "errors": {
                "total": sum(self.errors.values()),
                "in_parts": self.num_part_errors,
                "by_kind": dict(self.errors),
                "first": {kind: {"row_idx": idx, "detail": text} for kind, (idx, text) in self.first_errors.items()},
            },
            "finish_reasons": dict(self.finish_reasons),
            "tallies": {name: dict(values) for name, values in self.tallies.items()},
            "tokens": {"prompt": self.num_prompt_tokens, "completion": self.num_completion_tokens},
            "parts": {
                "total": self.num_parts,
                "read": self.num_parts_read,
                "unreadable": len(self.unreadable_parts),
                "partial": self.is_partial,
            },
            "journals": {"total": self.num_journals, "read": self.num_journals_read},
            "tokens_per_sec": self.tokens_per_sec,
            "eta_secs": self.eta_secs,
            "workers": [asdict(worker) for worker in self.workers],
            "stale_leases": [asdict(lease) for lease in self.stale_leases],
            "published": None if self.published is None else asdict(self.published),
            "clock": "file_system" if self.is_store_time else "this_machine",
            "advice": self.advice,
        }
