"""Which rows of a run are copied from other runs: decided once, by the process that begins the run, for all workers.

The object is an Arrow file with one batch for each shard, created exclusively. A growth has an object of its own, which
begins with the first shard that the growth has added.
"""

import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import count
from typing import Any

import numpy as np
import pyarrow as pa

from job.errors import JobError, first_line
from job.output.parts.checksum import with_checksum, without_checksum
from job.output.store.names import REUSE, reuse
from job.output.store.store import Store

COMPUTED = -1
"""In place of a run: the row is not copied."""

SCHEMA = pa.schema([("run", pa.int16()), ("row_idx", pa.int64()), ("drawn_at", pa.int64())])
"""Of each row of a shard: the run that it is copied from, by its place in ``others``; its index there; and the index
that it had when its answer was drawn, if answers are drawn. ``COMPUTED``: none."""

ENDING = b"ARROW1"
"""An Arrow file ends so: the first version wrote no checksum after it, and no ``drawn_at`` in it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Other:
    """Another run, whose rows are copied."""

    name: str
    """As the column ``reused_from`` names it."""
    address: str
    """Where it is."""
    digest: str
    """What it is: see ``Manifest.digest``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CopyPlan:
    """Which rows are copied, of some consecutive shards."""

    others: Sequence[Other]
    first_shard: int
    num_reused: int
    """The number of dataset rows that are copied."""
    batches: Any
    """A pyarrow reader of one batch for each shard."""

    @property
    def num_shards(self) -> int:
        """How many shards it is about."""
        return int(self.batches.num_record_batches)

    def of(self, shard_idx: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the runs and the indices there of a shard's rows: [rows] int16, [rows] int64."""
        batch = self.batches.get_batch(shard_idx - self.first_shard)
        return batch["run"].to_numpy(), batch["row_idx"].to_numpy()

    @property
    def draws(self) -> np.ndarray:
        """The indices whose draws the copied rows have, all shards together: [copied rows] int64."""
        if "drawn_at" not in self.batches.schema.names:
            return np.empty(0, np.int64)
        found = [self.batches.get_batch(idx)["drawn_at"].to_numpy() for idx in range(self.num_shards)]
        drawn_at = np.concatenate([np.empty(0, np.int64), *found])
        copied: np.ndarray = np.compress(drawn_at != COMPUTED, drawn_at)
        return copied


def read_copy_plans(store: Store) -> tuple[CopyPlan, ...]:
    """Return what was decided so far, in the order of the shards.

    Raises:
        JobError: it cannot be read.
    """
    return tuple(_read(store))


def _read(store: Store) -> Iterator[CopyPlan]:
    for name in map(reuse, count(1)):
        try:
            content = store.read(name)
        except FileNotFoundError:
            return
        except OSError as error:
            raise _failed(store, name, error) from None
        try:
            body = content if content.endswith(ENDING) else without_checksum(content)
            if body is None:
                raise ValueError("its checksum is wrong")
            batches = pa.ipc.open_file(pa.BufferReader(body))
            for idx in range(batches.num_record_batches):
                batches.get_batch(idx)
            about = json.loads(batches.schema.metadata[b"about"])
            others = [Other(**other) for other in about["others"]]
            first_shard, num_reused = about["first_shard"], about["num_reused"]
        except (OSError, pa.ArrowException, LookupError, TypeError, ValueError) as error:
            raise JobError(
                f"{store.describe(name)} is damaged ({first_line(error)}). Remove it and run the same command: which "
                "rows are copied is then decided again."
            ) from None
        yield CopyPlan(others=others, first_shard=first_shard, num_reused=num_reused, batches=batches)


def write_copy_plan(
    store: Store, num_known: int, others: Sequence[Other], first_shard: int, rows: Sequence[tuple[Any, Any, Any]]
) -> bool:
    """Record what is decided about the shards from ``first_shard`` on. False: another process was faster.

    Args:
        num_known: how many such objects there were.
        rows: of each shard, the columns of ``SCHEMA``.

    Raises:
        JobError: it cannot be recorded.
    """
    num_reused = sum(int((runs != COMPUTED).sum()) for runs, _, _ in rows)
    about = {"others": [asdict(other) for other in others], "first_shard": first_shard, "num_reused": num_reused}
    schema = SCHEMA.with_metadata({"about": json.dumps(about)})
    stream = io.BytesIO()
    with pa.ipc.new_file(stream, schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as writer:
        for columns in rows:
            arrays = [pa.array(column, field.type) for column, field in zip(columns, schema, strict=True)]
            writer.write_batch(pa.record_batch(arrays, schema=schema))
    name = reuse(num_known + 1)
    try:
        store.prepare([REUSE])
        return store.create_exclusively(name, with_checksum(stream.getvalue()))
    except OSError as error:
        raise _failed(store, name, error) from None


def _failed(store: Store, name: str, error: OSError) -> JobError:
    return JobError(f"{store.describe(name)}: {error.strerror or error}. Fix this and run the same command.")
