"""The rows of a part that were recomputed with other sampling options than the run's. Its metadata name both."""

import json
from collections import Counter
from collections.abc import Mapping

from job.records import SampleKey
from job.wording import flag

METADATA_KEY = b"job.redone"

Redone = Mapping[SampleKey, str]
"""Row to the names and values of the options, in the words of the command line."""


def described(changes: Mapping[str, object]) -> str:
    """Return options as they are typed.

    >>> described({"temperature": 0.5, "max_new_tokens": 64})
    '--max-new-tokens 64 --temperature 0.5'
    """
    return " ".join(f"{flag(name)} {value}" for name, value in sorted(changes.items()))


def to_metadata(redone: Redone) -> dict[bytes, bytes]:
    """Return the entry of a part's metadata; none if no row was recomputed in this way."""
    rows: dict[str, list[list[int]]] = {}
    for key, options in sorted(redone.items()):
        rows.setdefault(options, []).append(list(key))
    return {METADATA_KEY: json.dumps(rows).encode()} if rows else {}


def from_metadata(metadata: Mapping[bytes, bytes]) -> Redone:
    """Read what ``to_metadata`` wrote.

    Raises:
        ValueError: the entry is something else.
    """
    try:
        rows = json.loads(metadata.get(METADATA_KEY, b"{}"))
        return {(int(row), int(sample)): options for options, keys in rows.items() for row, sample in keys}
    except (TypeError, AttributeError):
        raise ValueError("it does not say which rows were recomputed") from None


def counted(redone: Redone) -> Counter[str]:
    """Return how many rows were recomputed with each set of options."""
    return Counter(redone.values())
