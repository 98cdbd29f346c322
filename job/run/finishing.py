"""Where finished rows go to: an open shard, or the journals of all shards."""

from typing import Protocol

from job.records import Completion, SampleKey


class Finishing(Protocol):
    """Takes finished rows."""

    def has(self, key: SampleKey) -> bool:
        """Whether this completion is finished already."""

    def add(self, completion: Completion) -> None:
        """Add a finished row. It is durable after the next sync."""
