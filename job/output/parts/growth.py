"""How a run has grown: the larger limits with which it was continued, so that a pilot becomes the run, or the rows that
an earlier run has gained, which is its dataset.

The manifest stays as it was written, so the parts that name its digest stay right. Each growth is an object of its own,
created exclusively: of several workers that start with a larger limit at once, one records it. Shards keep their rows
(see ``Plan``), so a worker that started before a growth goes on with the shards that it knows, and is right: unless the
dataset is another one since, of which only the finished rows were compared. Such a worker is fenced off (``fence``).
"""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import count

from job.errors import UsageError
from job.output.store.names import GROWTH, growth
from job.output.store.store import Store


@dataclass(frozen=True, slots=True, kw_only=True)
class Growth:
    """One growth of a run."""

    limit: int | None
    """The new limit; None: all rows of the dataset."""
    num_rows: int
    """The rows of the whole run."""
    created: str
    fingerprint: str | None = None
    """Of the dataset, if that is an earlier run which has grown."""
    num_files: int | None = None
    """Of the dataset, in that case."""
    sealed: Mapping[str, int] | None = None
    """If this is a fence, which adds no rows: the logs that still count, and how many bytes of each do."""

    @classmethod
    def now(
        cls,
        limit: int | None,
        num_rows: int,
        fingerprint: str | None = None,
        num_files: int | None = None,
        sealed: Mapping[str, int] | None = None,
    ) -> "Growth":
        """Return a growth of this moment."""
        return cls(
            limit=limit,
            num_rows=num_rows,
            created=time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            fingerprint=fingerprint,
            num_files=num_files,
            sealed=sealed,
        )

    def to_json(self) -> str:
        """Return the text of the object; what is as for a larger limit alone is left out, as older versions expect."""
        given = asdict(self)
        others = {"fingerprint", "num_files"} if self.fingerprint is None else set()
        others |= {"sealed"} if self.sealed is None else set()
        return json.dumps({name: value for name, value in given.items() if name not in others})


def read_growth(store: Store, num_known: int = 0) -> tuple[Growth, ...]:
    """Return how a run has grown, the first growth first.

    Args:
        num_known: leave out this many, the first ones.

    Raises:
        UsageError: an object cannot be read as a growth.
    """
    found: list[Growth] = []
    for name in map(growth, count(num_known + 1)):
        try:
            found.append(Growth(**json.loads(store.read(name))))
            if not isinstance(found[-1].num_rows, int):
                raise ValueError(f"its rows are {found[-1].num_rows}")
            if not isinstance(found[-1].sealed, dict | None):
                raise ValueError(f"its logs are {found[-1].sealed}")
        except FileNotFoundError:
            return tuple(found)
        except (ValueError, TypeError) as error:
            raise UsageError(f"{store.describe(name)} does not say how the run has grown ({error!r}).") from None
    raise AssertionError("there is no last number")


def add_growth(store: Store, known: Sequence[Growth], new: Growth) -> bool:
    """Record that a run grows. False: another process has recorded a growth since ``known`` was read."""
    store.prepare([GROWTH])
    return store.create_exclusively(growth(len(known) + 1), new.to_json().encode())
