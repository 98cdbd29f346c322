"""The kinds of stores, and which of them an address means. A path that was ``s3://b`` reads ``s3:/b``."""

import re
from pathlib import Path

from job.errors import UsageError
from job.output.store.local import LocalStore
from job.output.store.store import Store

ADDRESS = re.compile(r"[a-z][a-z0-9+.-]+:/")


def check_address(output: Path) -> None:
    """Check what ``--output`` names.

    Raises:
        UsageError: no store can be there.
    """
    if not output.name:
        raise UsageError("--output is empty or the root directory. Name a directory for this run.")
    if ADDRESS.match(str(output)):
        address = str(output).replace(":/", "://", 1)  # which a path has made one slash of
        raise UsageError(f"--output {address} is an address, but runs are written to directories. Name a directory.")


def open_store(address: Path) -> Store:
    """Return the store of a run directory, which need not exist yet."""
    return LocalStore(address.absolute())
