"""Reads all parts and checks them against the manifest and the plan, with one batch of rows in memory at a time.

A run that nothing else has touched cannot fail this. It finds faulty disks, interrupted copies, and files that people
have moved.
"""

import fnmatch
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import pyarrow as pa

from job.errors import JobError
from job.output.looking.found import FoundRun
from job.output.looking.part_check import PartProblem, check_part
from job.output.parts.growth import read_growth
from job.output.store.names import PART_PATTERN, within


@dataclass(frozen=True, slots=True)
class Problem:
    """A file, and what is wrong with it."""

    file: str
    text: str

    def __str__(self) -> str:
        return f"{self.file} {self.text}"


@dataclass(slots=True, kw_only=True)
class Verification:
    """The result of reading everything. ``num_done + num_errors + num_pending + num_damaged`` is ``total_rows``."""

    total_rows: int
    total_parts: int
    num_parts: int = 0
    """Parts that are right."""
    num_done: int = 0
    """Rows with a completion, in parts that are right."""
    errors: Counter[str] = field(default_factory=Counter)
    """Error kind to number of rows, in parts that are right."""
    num_pending: int = 0
    """Rows of shards that have no part."""
    num_damaged: int = 0
    """Rows of shards whose part is wrong."""
    num_to_retry: int = 0
    """Parts with error rows to be retried."""
    problems: list[Problem] = field(default_factory=list)

    @property
    def num_errors(self) -> int:
        """Rows with an error, in parts that are right."""
        return self.errors.total()

    @property
    def is_complete(self) -> bool:
        """Whether every shard has a part that is right, and no row is to be retried."""
        return self.num_parts == self.total_parts and not self.num_to_retry

    def to_dict(self) -> dict[str, object]:
        """Return JSON values. The names are stable, since scripts rely on them."""
        return {
            "rows": {
                "total": self.total_rows,
                "done": self.num_done,
                "error": self.num_errors,
                "pending": self.num_pending,
                "damaged": self.num_damaged,
            },
            "errors_by_kind": dict(self.errors),
            "parts": {"total": self.total_parts, "right": self.num_parts, "to_retry": self.num_to_retry},
            "complete": self.is_complete,
            "problems": [{"file": problem.file, "problem": problem.text} for problem in self.problems],
        }


def verify(run: FoundRun, on_part: Callable[[], None] = lambda: None) -> Verification:
    """Read every part of a run.

    A part with a problem is not read further: whatever else is wrong with it, the remedy is the same.

    Args:
        on_part: called after each shard of the plan.

    Raises:
        JobError: there is no permission to read a file, so it is unknown whether it is right.
    """
    result = Verification(total_rows=run.plan.num_completions, total_parts=run.plan.num_shards)
    try:
        result.problems += _foreign_parts(run)
        like: pa.Schema | None = None
        for shard_idx in range(run.plan.num_shards):
            like = _verify_shard(run, shard_idx, like, result)
            on_part()
    except OSError as error:
        raise JobError(
            f"{error.filename or run.directory.store.describe()} cannot be read: {error.strerror or error}."
        ) from None
    counted = result.num_done + result.num_errors + result.num_pending + result.num_damaged
    assert counted == result.total_rows, f"{counted} rows counted, {result.total_rows} in the plan"
    return result


def _verify_shard(run: FoundRun, shard_idx: int, like: pa.Schema | None, result: Verification) -> pa.Schema | None:
    """Add a shard to the result. Returns the schema that further parts must have."""
    num_rows = run.plan.count([shard_idx])
    store, part = run.directory.store, run.directory.names.part(shard_idx)
    if not store.exists(part):
        result.num_pending += num_rows
        return like
    try:
        counts, schema = check_part(run, shard_idx, like)
    except PartProblem as problem:
        result.problems.append(Problem(part, str(problem)))
        result.num_damaged += num_rows
        return like
    result.num_parts += 1
    result.num_done += counts.num_rows - counts.num_errors
    result.errors.update(counts.errors)
    result.num_to_retry += store.exists(run.directory.names.retry(shard_idx))
    return schema if like is None else like


def _foreign_parts(run: FoundRun) -> list[Problem]:
    """Find files that readers would mistake for parts of this run. They skip names that begin with a dot or ``_``."""
    part_dir = run.directory.names.part_dir
    found = [entry.name for entry in run.directory.store.list(part_dir) if entry.name[0] not in "._"]
    # Read after the parts are listed: the run may have grown since it was found.
    names = replace(run.manifest, growth=read_growth(run.directory.store)).names
    first, last = names.part(0), names.part(names.num_shards - 1)
    if not part_dir:
        found = fnmatch.filter(found, PART_PATTERN)
    foreign = sorted(within(part_dir, name) for name in found if names.shard_of(name) is None)
    # A name that cannot be printed, or not on one line, is shown as Python would write it.
    shown = [name if name.isprintable() else ascii(name) for name in foreign]
    return [Problem(name, f"is not a part of this run: the plan has {first} to {last}") for name in shown]
