"""What names a run directory: a path, or an address such as ``s3://bucket/run``; and which store each of them means."""

import re
from pathlib import Path

from job.errors import UsageError
from job.output.store.bucket import Bucket, check_client
from job.output.store.local import LocalStore
from job.output.store.objects import ObjectStore
from job.output.store.store import Store

ADDRESS = re.compile(r"([a-z][a-z0-9+.-]+):/+(.*)", re.IGNORECASE | re.DOTALL)
"""A path that was ``s3://b`` reads ``s3:/b``."""

S3 = "s3"

ADVICE = "Write the run to a local or mounted disk, or to s3://BUCKET/DIRECTORY"

UNFIT = {
    "hf": f"cannot hold a run, since the Hub has no conditional writes. {ADVICE}, and then use 'job publish'.",
    "gs": f"is not supported. {ADVICE}, and copy it afterwards.",
}
"""Why an address cannot be a run directory, and what to do."""


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


def normal(place: str) -> str:
    """Return a place in the form in which it is shown.

    >>> normal("runs//a/"), normal("s3://bucket/runs/a/")
    ('runs/a', 's3://bucket/runs/a')
    """
    if found := ADDRESS.fullmatch(place):
        return f"{found[1].lower()}://{found[2].rstrip('/')}"
    return str(Path(place))


def local_path(place: str) -> Path | None:
    """Return the path of a run directory; None if it is in an object store."""
    return None if ADDRESS.fullmatch(place) else Path(place)


def check_output(place: str) -> None:
    """Check what ``--output`` names.

    Raises:
        UsageError: no store can be there.
    """
    if not place or place == "." or not (found := ADDRESS.fullmatch(place)):
        if not Path(place).name:
            raise UsageError("--output is empty or the root directory. Name a directory for this run.")
        return
    scheme, rest = found[1].lower(), found[2].rstrip("/")
    if scheme == "file":
        raise UsageError(f"--output {place} is an address, not a path. Write /{rest}.")
    if scheme != S3:
        reason = UNFIT.get(scheme, f"is not supported. {ADVICE}.")
        raise UsageError(f"--output {place} {reason}")
    bucket, _, prefix = rest.partition("/")
    if not bucket or not prefix or "//" in f"/{prefix}":
        raise UsageError(f"--output {place} does not name a place in a bucket. Write s3://BUCKET/DIRECTORY.")
    check_client()


def open_store(place: str | Path) -> Store:
    """Return the store of a run directory, which need not exist yet.

    Raises:
        UsageError: no store can be there.
    """
    path = local_path(str(place))
    if path is not None:
        return LocalStore(path.absolute())
    address = normal(str(place))
    check_output(address)
    bucket, _, prefix = address.partition("://")[2].partition("/")
    return ObjectStore(Bucket(bucket), prefix)
