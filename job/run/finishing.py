"""Where finished rows go to: an open shard, or the journals of all shards."""

from typing import Protocol

from job.records import Completion, SampleKey


class Finishing(Protocol):
    """Takes finished rows."""

    def has(self, key: SampleKey) -> bool:
        """Whether this completion is finished already."""

    def add(self, completion: Completion) -> None:
        """Add a finished row. It is durable after the next sync."""


def describe_lost_rows(error: Exception, where: str = "") -> str:
    """Return what to say of the rows that were finished after the last sync, if the one at the end fails.

    >>> describe_lost_rows(OSError(28, "No space left on device", "x"), " of shard 3")
    'the last rows of shard 3 could not be stored, and will be recomputed: No space left on device'
    """
    reason = f": {error.strerror or error}" if isinstance(error, OSError) else ""  # a server's silence was told
    return f"the last rows{where} could not be stored, and will be recomputed{reason}"
