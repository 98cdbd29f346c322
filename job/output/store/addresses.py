"""Chooses the kind of store for an address."""

from pathlib import Path

from job.output.store.local import LocalStore
from job.output.store.store import Store


def open_store(address: Path) -> Store:
    """Return the store of a run directory, which need not exist yet."""
    return LocalStore(address.absolute())
