"""The sums over all parts of a run that is done, kept beside them: one process reads all footers, and no other has to.

They name the parts that they were made of, so that sums of parts which were replaced since are not taken for true.
"""

import contextlib
import hashlib
import json

from job.output.looking.footers import count_all
from job.output.parts.counts import Counts
from job.output.store.directory import RunDirectory
from job.output.store.names import TOTALS


def read_totals(directory: RunDirectory) -> Counts | None:
    """Return the sums that some process has left; None if there are none, or of other parts.

    Raises:
        OSError: the directory cannot be read.
    """
    with contextlib.suppress(FileNotFoundError, ValueError, LookupError, TypeError):
        content = json.loads(directory.store.read(TOTALS))
        if content["parts"] == _parts(directory):
            return Counts.from_json(json.dumps(content["counts"]).encode())
    return None


def add_up(directory: RunDirectory) -> Counts:
    """Read all footers, and leave the sums for others.

    Raises:
        JobError: a part cannot be read.
        OSError: the sums cannot be written.
    """
    parts = _parts(directory)  # first: what is replaced while the footers are read makes the sums invalid
    counts = count_all(directory)
    content = {"parts": parts, "counts": counts.to_dict()}
    directory.store.replace(TOTALS, json.dumps(content).encode())
    return counts


def _parts(directory: RunDirectory) -> str:
    """Return a hash that another set of parts does not have."""
    identities = sorted((shard_idx, entry.identity) for shard_idx, entry in directory.parts())
    return hashlib.sha256(json.dumps(identities).encode()).hexdigest()
