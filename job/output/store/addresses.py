"""The kinds of stores, and which of them an address means. A path that was ``s3://b`` reads ``s3:/b``."""

import re
from pathlib import Path

from job.errors import UsageError
from job.output.store.local import LocalStore
from job.output.store.store import Store

ADDRESS = re.compile(r"([a-z][a-z0-9+.-]+):/+(.*)", re.IGNORECASE | re.DOTALL)


def check_local(option: str, value: str, remedy: str) -> None:
    """Check that a value is not an address, such as ``s3://bucket/key``: it would become a local directory, ``s3:``.

    Args:
        remedy: what to give instead.

    Raises:
        UsageError: it is one.
    """
    if found := ADDRESS.match(value):
        scheme, rest = found.groups()
        advice = f"Write /{rest}." if scheme.lower() == "file" else remedy
        raise UsageError(f"--{option} {scheme}://{rest} is an address, not a path. {advice}")


def check_output(output: Path) -> None:
    """Check what ``--output`` names.

    Raises:
        UsageError: no store can be there.
    """
    if not output.name:
        raise UsageError("--output is empty or the root directory. Name a directory for this run.")
    check_local("output", str(output), "Name a directory on a local or mounted disk, and upload it afterwards.")


def open_store(address: Path) -> Store:
    """Return the store of a run directory, which need not exist yet."""
    return LocalStore(address.absolute())
