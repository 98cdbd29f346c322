"""``published.json``: where a run was published last, and which parts. For people, and to save work.

What is in a repository is decided by its own listing: this record may be older, if a process died before it wrote it.
"""

import json
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from job.output.store.names import PUBLISHED
from job.output.store.store import Stamp, Store
from job.remote.tree import RemoteFile


@dataclass(frozen=True, slots=True, kw_only=True)
class PublicPart:
    """The contents of a part as they are published."""

    stamp: Stamp
    """Of the part in the run directory."""
    num_bytes: int
    digests: tuple[str, ...]
    """Their digests in each of the forms that a listing of a repository may have."""

    def is_at(self, file: RemoteFile | None) -> bool:
        """Whether a file of a repository has these contents."""
        return file is not None and file.digest in self.digests


@dataclass(frozen=True, slots=True, kw_only=True)
class Publication:
    """What a repository held when this run was last published."""

    repository: str
    commit: str
    is_complete: bool
    num_rows: int
    card: str | None
    """The digest of the card that was published; None: the repository's own card was left alone."""
    parts: Mapping[str, PublicPart]
    """Name to contents."""

    def num_current(self, parts: Iterable[tuple[str, str]]) -> int:
        """Return how many parts of the run are published as they are now.

        Args:
            parts: their names, and their identities in a listing.
        """
        published = {(name, part.stamp.identity) for name, part in self.parts.items()}
        return sum(part in published for part in parts)

    def to_json(self) -> bytes:
        """Return the contents of ``published.json``."""
        content = {
            "repository": self.repository,
            "commit": self.commit,
            "complete": self.is_complete,
            "num_rows": self.num_rows,
            "card": self.card,
            "parts": {name: _to_list(part) for name, part in sorted(self.parts.items())},
        }
        return json.dumps(content, indent=1).encode()


def read_publication(store: Store) -> Publication | None:
    """Return where a run was published last; None if it was not, or the record cannot be used."""
    with suppress(OSError, ValueError, LookupError, TypeError, AttributeError):
        content = json.loads(store.read(PUBLISHED))
        return Publication(
            repository=content["repository"],
            commit=content["commit"],
            is_complete=content["complete"],
            num_rows=content["num_rows"],
            card=content["card"],
            parts={name: _from_list(values) for name, values in content["parts"].items()},
        )
    return None


def _to_list(part: PublicPart) -> list[Any]:
    return [part.stamp.identity, part.stamp.num_bytes, part.stamp.written, part.num_bytes, *part.digests]


def _from_list(values: list[Any]) -> PublicPart:
    identity, num_stored_bytes, written, num_bytes, *digests = values
    return PublicPart(
        stamp=Stamp(str(identity), num_stored_bytes, written), num_bytes=num_bytes, digests=tuple(map(str, digests))
    )
