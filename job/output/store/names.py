"""The names of all objects in a run directory. No other module builds such a name."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

PARTS = "data"
"""Directory of parts, and of nothing else: pandas, polars and others read every file of a directory.

Runs of earlier formats have their parts in the run directory itself.
"""

PART_PATTERN = "part-*.parquet"
"""The files that make up a run's table, in their directory."""

MANIFEST = "manifest.json"
"""What the run is. It is read before the number of shards is known."""

CARD = "README.md"
"""The dataset card, for people and for Hugging Face. Written when the run is done."""

GROWTH = "growth"
"""Directory of the limits with which the run was continued after it had begun with a smaller one."""

SETTINGS = "settings.json"
"""Settings on which workers, status and retry must agree, but which a restart may change."""

TOTALS = "totals.json"
"""The sums over all parts of a finished run. One process adds them up for all others."""

PUBLISHED = "published.json"
"""Where the run was published last, and which parts. Written by ``job publish``."""

JOURNALS = "journal"
"""Directory of journals: the finished rows of unfinished shards."""

LEASES = "leases"
"""Directory of leases: which worker works on which shard."""

CONCLUSION = f"{LEASES}/conclusion"
"""Lease of the process that adds up the totals."""

METRICS = "metrics"
"""Directory of metrics: figures over time, one object per worker."""

PAGE = "report.html"
"""The page that ``job report`` writes."""

CUT = "cut"
"""Directory of the tokens of completions that their limit has cut, for ``job retry --cut``: one object per shard."""

KEYS = "keys"
"""Directory of what the rows of finished shards ask, as hashes, for ``--reuse`` and ``--extend``: one object each."""

REUSE = "reuse"
"""Directory of which rows are copied from other runs: one object for the run, and one for each growth."""

RETRIES = "retry"
"""Directory of markers: which finished shards have rows to be retried. Made by ``job retry``."""


SCATTERED = -1
"""In place of a shard: objects that are of rows of all shards, which the random order has mixed."""

OWN = frozenset(
    [
        *(PARTS, MANIFEST, GROWTH, CARD, SETTINGS, TOTALS, PUBLISHED, PAGE),
        *(JOURNALS, LEASES, METRICS, CUT, KEYS, REUSE, RETRIES),
    ]
)
"""All names at the top of a run directory."""

LOGS = frozenset([JOURNALS, METRICS])
"""Directories of objects that are appended to."""

COMPANIONS = (".log", ".out", ".err", ".toml", ".yaml", ".yml", ".sh", ".sbatch", ".md", "lost+found", "Thumbs.db")
"""Endings of what people and systems put beside a run: scripts, settings, logs."""


def growth(number: int) -> str:
    """Return the object that records the first, second, ... growth of a run."""
    return f"{GROWTH}/{number:05d}"


def reuse(number: int) -> str:
    """Return the object that says which rows are copied: of the run as it began, or after a growth."""
    return f"{REUSE}/{number:05d}"


def generation_of(log: str) -> int:
    """Return the generation of a log in ``journal/``.

    >>> generation_of("journal/00042.n1-77.0.g2.partials"), generation_of("journal/00042.n1-77.arrows")
    (2, 0)
    """
    found = re.search(r"\.g(\d+)\.[a-z]+$", log, re.ASCII)
    return 0 if found is None else int(found[1])


def _retry_of(log: str) -> str:
    """Return the retry that a log in ``journal/`` belongs to; empty if to none.

    >>> _retry_of("journal/00042.n1-77.r0a1b2c.g2.arrows"), _retry_of("journal/00042.n1-77.arrows")
    ('0a1b2c', '')
    """
    found = re.search(r"\.r([0-9a-f]+)(\.g\d+)?\.[a-z]+$", log, re.ASCII)
    return "" if found is None else found[1]


def is_log(name: str) -> bool:
    """Whether an object is appended to.

    >>> is_log("journal/00042.w.arrows"), is_log("journal")
    (True, False)
    """
    directory, _, rest = name.partition("/")
    return bool(rest) and directory in LOGS


def is_stranger(name: str) -> bool:
    """Whether an object at the top of a directory suggests that the directory is meant for something else.

    >>> [is_stranger(name) for name in ("manifest.json", ".DS_Store", ".nfs01", "run-7.log", "notes.txt", "src")]
    [False, False, False, False, True, True]
    """
    return name not in OWN and not name.startswith(".") and not name.endswith(COMPANIONS)


def within(directory: str, name: str) -> str:
    """Return the name of an object in a directory, which may be the run directory.

    >>> within("data", "x"), within("", "x")
    ('data/x', 'x')
    """
    return f"{directory}/{name}" if directory else name


@dataclass(frozen=True, slots=True)
class RunNames:
    """The names that depend on shards and workers.

    >>> names = RunNames(num_shards=100)
    >>> names.part(42), names.journal(42, "n1-77"), names.lease(42, 7)
    ('data/part-00042.parquet', 'journal/00042.n1-77.arrows', 'leases/00042.0007')
    """

    num_shards: int
    """Sets the width of the numbers, so that names always sort in the order of the shards."""
    part_dir: str = PARTS
    """The directory of the parts; empty: the run directory itself."""
    generation: int = 0
    """How often the run has been fenced (``job.output.parts.fence``). Logs in ``journal/`` are of one generation."""
    sealed: Mapping[str, int] = field(default_factory=dict)
    """The logs of earlier generations that count, and how many bytes of each do."""
    retry_id: str | None = None
    """Logs of one retry of a shard have its identity in their names, so that what belongs to another view of the shard
    does not count. Empty: the shard has no part yet. None: all of them are meant."""

    def number(self, shard_idx: int) -> str:
        """Return the shard's number in the form that names contain."""
        return "all" if shard_idx == SCATTERED else f"{shard_idx:0{max(5, len(str(self.num_shards - 1)))}d}"

    def part(self, shard_idx: int) -> str:
        """Return the final name of a shard. Its existence is the only mark that the shard is done."""
        return within(self.part_dir, f"part-{self.number(shard_idx)}.parquet")

    def shard_of(self, name: str) -> int | None:
        """Return the shard whose part has this name in the directory of parts; None if this run has no such part.

        >>> names = RunNames(num_shards=100)
        >>> names.shard_of("part-00042.parquet"), names.shard_of("part-42.parquet")
        (42, None)
        """
        number = name.removeprefix("part-").removesuffix(".parquet")
        if not number.isdecimal() or int(number) >= self.num_shards:
            return None
        return int(number) if within(self.part_dir, name) == self.part(int(number)) else None

    def drafts_of_part(self, shard_idx: int) -> str:
        """Return a pattern for the drafts of a shard's part. (Earlier versions wrote them without the ending.)"""
        return f"part-{self.number(shard_idx)}*"

    def journal(self, shard_idx: int, worker_id: str) -> str:
        """Return the journal that one worker appends to for one shard.

        >>> RunNames(num_shards=100, generation=2).journal(42, "n1-77")
        'journal/00042.n1-77.g2.arrows'
        """
        return self._log(f"{self.number(shard_idx)}.{worker_id}", "arrows")

    def partials(self, shard_idx: int, worker_id: str, number: int) -> str:
        """Return the first, second, ... log of what one worker's rows in flight have, of one shard."""
        return self._log(f"{self.number(shard_idx)}.{worker_id}.{number}", "partials")

    def cut_log(self, shard_idx: int, worker_id: str, number: int) -> str:
        """Return the first, second, ... log of what was cut of one worker's rows, of one shard."""
        return self._log(f"{self.number(shard_idx)}.{worker_id}.{number}", "cut")

    def _log(self, start: str, ending: str) -> str:
        retry = f".r{self.retry_id}" if self.retry_id else ""
        generation = f".g{self.generation}" if self.generation else ""
        return f"{JOURNALS}/{start}{retry}{generation}.{ending}"

    def counts(self, log: str) -> bool:
        """Whether what is in a log counts: its writer knows the run as we do, or it was sealed."""
        is_of_retry = self.retry_id is None or _retry_of(log) == self.retry_id
        return is_of_retry and (generation_of(log) == self.generation or log in self.sealed)

    def num_sealed_bytes(self, log: str) -> int | None:
        """Return how much of a log counts; None: all of it, and what will be appended."""
        return None if generation_of(log) == self.generation else self.sealed.get(log, 0)

    def cut(self, shard_idx: int) -> str:
        """Return the object with the tokens of a finished shard's completions that were cut."""
        return f"{CUT}/{self.number(shard_idx)}"

    def keys(self, shard_idx: int) -> str:
        """Return the object with the keys of a finished shard's rows."""
        return f"{KEYS}/{self.number(shard_idx)}"

    def lease(self, shard_idx: int, slice_idx: int | None = None) -> str:
        """Return the object whose exclusive creation claims a shard, or a slice of it."""
        return f"{LEASES}/{self.number(shard_idx)}{'' if slice_idx is None else f'.{slice_idx:04d}'}"

    def offer(self, shard_idx: int, number: int) -> str:
        """Return the object that lists rows which a worker of a shard offers to others. Its lease is like that of a
        slice, so the number is not that of any slice.

        >>> RunNames(num_shards=100).offer(42, 70001)
        'leases/00042.70001.rows'
        """
        return f"{self.lease(shard_idx, number)}.rows"

    def piece(self, order: str, piece_idx: int) -> str:
        """Return the lease of a piece of the random order of this name: of rows that follow each other in it.

        >>> RunNames(num_shards=100).piece("0-5000", 7)
        'leases/all.0-5000.000007'
        """
        return f"{LEASES}/{self.number(SCATTERED)}.{order}.{piece_idx:06d}"

    def piece_done(self, order: str, piece_idx: int) -> str:
        """Return the mark that all rows of a piece are finished."""
        return f"{self.piece(order, piece_idx)}.done"

    def clock(self, worker_id: str) -> str:
        """Return the object that a worker touches to learn the store's time."""
        return f"{LEASES}/.clock-{worker_id}"

    def retry(self, shard_idx: int) -> str:
        """Return the marker that says which error rows of a finished shard are to be retried."""
        return f"{RETRIES}/{self.number(shard_idx)}"

    def metrics(self, worker_id: str) -> str:
        """Return the object that one worker appends its figures to."""
        return f"{METRICS}/{worker_id}.jsonl"
