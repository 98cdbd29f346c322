"""The sums over all parts of a finished run, stored beside them, so that only one process has to read all footers.

They identify the parts that they were computed from, so that they are not used after a part has been replaced.
"""

import contextlib
import hashlib
import json

from job.output.looking.footers import count_all
from job.output.parts.counts import Counts
from job.output.store.directory import RunDirectory
from job.output.store.names import TOTALS


def read_totals(directory: RunDirectory) -> Counts | None:
    """Return the stored sums; None if there are none, or if they are of other parts.

    Raises:
        OSError: the directory cannot be read.
    """
    with contextlib.suppress(FileNotFoundError, ValueError, LookupError, TypeError):
        content = json.loads(directory.store.read(TOTALS))
        if content["parts"] == _parts(directory):
            return Counts.from_json(json.dumps(content["counts"]).encode())
    return None


def completed_by(directory: RunDirectory) -> str:
    """Return the launch that was the first to add up these parts; empty if it is not known.

    Raises:
        OSError: the directory cannot be read.
    """
    with contextlib.suppress(FileNotFoundError, ValueError, LookupError, TypeError):
        content = json.loads(directory.store.read(TOTALS))
        if content["parts"] == _parts(directory):
            return str(content["by"])
    return ""


def add_up(directory: RunDirectory, by: str = "") -> Counts:
    """Read all footers, and store the sums for other processes.

    Args:
        by: the launch that does so. If another one has added up the same parts before, that one stays on record.

    Raises:
        JobError: a part cannot be read.
        OSError: the sums cannot be written.
    """
    parts = _parts(directory)  # first: a part that is replaced while footers are read makes the sums invalid
    counts = count_all(directory)
    content = {"parts": parts, "counts": counts.to_dict(), "by": completed_by(directory) or by}
    directory.store.replace(TOTALS, json.dumps(content).encode())
    return counts


def _parts(directory: RunDirectory) -> str:
    """Return a hash that identifies this set of parts."""
    identities = sorted((shard_idx, entry.identity) for shard_idx, entry in directory.parts())
    return hashlib.sha256(json.dumps(identities).encode()).hexdigest()
