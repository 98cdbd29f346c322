"""The dataset's files in a manifest, for people: which of them have changed since the run began.

Not part of a run's identity, which is the hash of all contents: files may be moved or renamed.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from job.errors import shorten

SHOWN = 3

Files = Mapping[str, Sequence[Any]]
"""Name to size and digest."""


def describe_changes(was: Files, now: Files) -> str:
    """Describe how the files of two manifests differ.

    >>> describe_changes({"a": [1, "x"], "b": [1, "y"]}, {"b": [2, "z"], "c": [1, "x"]})
    'new file c; missing file a; changed file b'
    """
    changed = [name for name in was if name in now and list(was[name]) != list(now[name])]
    groups = {
        "new": [name for name in now if name not in was],
        "missing": [name for name in was if name not in now],
        "changed": changed,
    }
    return "; ".join(_describe(kind, names) for kind, names in groups.items() if names)


def _describe(kind: str, names: Sequence[str]) -> str:
    more = f" (+{len(names) - SHOWN:,})" if len(names) > SHOWN else ""
    return f"{kind} file{'s' if len(names) > 1 else ''} {', '.join(map(shorten, names[:SHOWN]))}{more}"
