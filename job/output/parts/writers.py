"""Which worker computed each row of a part: recorded in its footer, so that a faulty machine can be found later.

The worker that finished a completion counts, whoever wrote the part, and though another may have begun it before a
kill. Rows that a retry keeps stay with the worker that they had. Parts may be published, so a footer names no host: a
worker is its process and its nonce there, and the names of the run's metrics files, which stay here, lead to its host.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby

METADATA_KEY = b"job.writers"

UNKNOWN = "unknown"
"""The worker of rows of which nothing is recorded (older versions recorded nothing), and its host."""

COPIED = "another run"
"""In place of the worker of rows that were copied from another run."""

WORKER = re.compile(r"(.+)-(\d+-[0-9a-f]{6})")
"""The host of a worker, and its process and nonce; see ``job.output.sharing.worker``."""


def writer_of(worker_id: str) -> str:
    """Return how a footer names a worker. A name may be followed by the number of one of its journals.

    >>> writer_of("gpu-node-17-4242-0a1b2c"), writer_of("gpu-node-17-4242-0a1b2c-1")
    ('4242-0a1b2c', '4242-0a1b2c')
    """
    found = WORKER.match(worker_id)
    return worker_id if found is None else found.group(2)


def writer_of_journal(name: str) -> str:
    """Return how a footer names the worker that a journal belongs to.

    >>> writer_of_journal("journal/00042.n1-77-0a1b2c.arrows")
    '77-0a1b2c'
    """
    return writer_of(name.rpartition("/")[2].partition(".")[2].removesuffix(".arrows"))


def hosts_of(worker_ids: Iterable[str]) -> Mapping[str, str]:
    """Return the host of each worker, by its name in footers.

    >>> hosts_of(["gpu-node-17-4242-0a1b2c"])
    {'4242-0a1b2c': 'gpu-node-17'}
    """
    return {found.group(2): found.group(1) for name in worker_ids if (found := WORKER.fullmatch(name)) is not None}


def to_metadata(writers: Iterable[str]) -> dict[bytes, bytes]:
    """Return the entry of a part's metadata: the workers, and for each run of rows of one worker its index and length.

    Args:
        writers: of the rows, in their order.

    >>> to_metadata(["a", "a", "b", "a"])
    {b'job.writers': b'{"workers":["a","b"],"runs":[[0,2],[1,1],[0,1]]}'}
    """
    runs = [(worker, sum(1 for _ in rows)) for worker, rows in groupby(writers)]
    places = {worker: place for place, worker in enumerate(dict.fromkeys(worker for worker, _ in runs))}
    content = {"workers": list(places), "runs": [[places[worker], number] for worker, number in runs]}
    return {METADATA_KEY: json.dumps(content, separators=(",", ":")).encode()}


def from_metadata(metadata: Mapping[bytes, bytes], num_rows: int) -> Sequence[str]:
    """Return the worker of each row of a part.

    Raises:
        ValueError: the entry is something else.

    >>> from_metadata(to_metadata(["a", "a", "b"]), 3), from_metadata({}, 2)
    (['a', 'a', 'b'], ['unknown', 'unknown'])
    """
    if METADATA_KEY not in metadata:
        return [UNKNOWN] * num_rows
    try:
        content = json.loads(metadata[METADATA_KEY])
        writers = [content["workers"][place] for place, number in content["runs"] for _ in range(number)]
    except (ValueError, TypeError, LookupError):
        writers = []
    if len(writers) != num_rows or not all(isinstance(worker, str) for worker in writers):
        raise ValueError("it does not say which worker computed each row")
    return writers
