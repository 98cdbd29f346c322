"""What to say of a run directory whose ``manifest.json`` is missing or damaged, in the words of every command.

A manifest is always older than the parts and journals of its run, so where these are and it is not, it was lost.
"""

import re

from job.output.store.names import JOURNALS, MANIFEST, PARTS
from job.output.store.store import Store

PART = re.compile(r"part-\d+\.parquet", re.ASCII)
"""Stricter than the pattern that readers use: other programs write files of such names, too."""

JOURNAL = re.compile(r"\d+\..+\.arrows", re.ASCII)


def left_of_run(store: Store) -> str | None:
    """Return what there is of a run, such as ``12 parts and 1 journal``; None if there is nothing of one.

    Raises:
        OSError: the directory is not there, or cannot be read.
    """
    num_parts = sum(bool(PART.fullmatch(entry.name)) for place in ("", PARTS) for entry in store.list(place))
    num_journals = sum(bool(JOURNAL.fullmatch(entry.name)) for entry in store.list(JOURNALS))
    counts = (num_parts, "part"), (num_journals, "journal")
    return " and ".join(f"{count:,} {noun}{'s' if count > 1 else ''}" for count, noun in counts if count) or None


def describe_lost(store: Store, left: str) -> str:
    """Return what to say where a run's manifest is missing.

    Args:
        left: what there is of the run.
    """
    return f"{store.describe()} holds {left} of a run, but {MANIFEST} is missing. {_advice(left)}"


def describe_damaged(store: Store, reason: str) -> str:
    """Return what to say where a manifest cannot be understood."""
    left = left_of_run(store)
    if left is None:
        return f"{store.describe(MANIFEST)} is not a manifest ({reason}). To start a run, use a new --output."
    return f"{store.describe(MANIFEST)} is damaged ({reason}), with {left} of its run beside it. {_advice(left)}"


def _advice(left: str) -> str:
    read = "; its parts can still be read as Parquet files" if "part" in left else ""
    return f"Put it back from a copy{read}. Without it the run cannot go on: start again with a new --output."
