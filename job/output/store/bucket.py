"""Requests to a bucket of an object store that speaks S3, and what its answers mean. Knows nothing of runs.

``botocore`` signs and sends them, and finds credentials, region and endpoint as every AWS tool does (environment
variables, profiles, ``AWS_ENDPOINT_URL``). Retries are ours: a request that fails with something transient is repeated
until ``--hub-timeout`` is over.

What S3 promises, and this relies on: an object is durable once its PUT has been answered, all later reads and listings
show it, and of several conditional PUTs one succeeds.
"""

import base64
import errno
import hashlib
import itertools
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from functools import cached_property, partial
from typing import Any, BinaryIO, TypeVar

from job.errors import UsageError, first_line
from job.remote.patience import patiently
from job.remote.transient import is_transient, reason_of_trouble, status_of, untrusted_certificate

Result = TypeVar("Result")

CONNECT_SECS, READ_SECS = 10.0, 30.0
MAX_CONNECTIONS = 32

ABSENT = ""
"""In place of a version: there must be no object."""

CONFLICTS = frozenset({"ConditionalRequestConflict", "OperationAborted"})
"""Answers to a PUT while another one to the same key is in progress: which of them wins is not decided yet."""


class Changed(Exception):
    """The condition of a request does not hold: the object exists, or is another one by now."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """An object, as an answer or a listing describes it."""

    key: str
    etag: str
    num_bytes: int
    written: float
    """Unix time of the last PUT, by the store's clock, in whole seconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Put:
    """The answer to a PUT."""

    etag: str
    time: float
    """Unix time by the store's clock."""


class Bucket:
    """One bucket. Threads may share it."""

    def __init__(self, name: str) -> None:
        """Use this bucket, which must exist. Nothing is sent yet."""
        self.name = name
        self.quotes_versions = True
        """Whether PUTs give a version in quotes, as the standard has it. Ceph 16 understands them only without."""

    def get(self, key: str, start: int = 0, stop: int | None = None, *, etag: str | None = None) -> tuple[bytes, Found]:
        """Return a range of an object and what the object is. A negative start counts from the end.

        Args:
            etag: the version that is wanted.

        Raises:
            FileNotFoundError: the object does not exist.
            Changed: it has been replaced since it had this ``etag``.
        """
        wanted: dict[str, Any] = {} if etag is None else {"IfMatch": etag}
        if start or stop is not None:
            wanted["Range"] = f"bytes={start}" if start < 0 else f"bytes={start}-{'' if stop is None else stop - 1}"

        def get() -> tuple[bytes, Found]:
            answer = self._client.get_object(Bucket=self.name, Key=key, **wanted)
            data: bytes = answer["Body"].read()
            found = self._found(key, answer)
            whole = answer.get("ContentRange", "").rpartition("/")[2]
            num_bytes = int(whole) if whole.isdecimal() else len(data)
            return data, Found(key=key, etag=found.etag, num_bytes=num_bytes, written=found.written)

        while True:
            try:
                return self._ask(key, get)
            except _BeyondEnd:
                found = self.head(key)
                if found.num_bytes <= max(0, start):  # otherwise it has grown in between
                    return b"", found

    def head(self, key: str) -> Found:
        """Return what an object is.

        Raises:
            FileNotFoundError: the object does not exist.
        """
        answer = self._ask(key, lambda: self._client.head_object(Bucket=self.name, Key=key))
        return self._found(key, answer)

    def put(self, key: str, data: bytes | BinaryIO, *, over: str | None = None, patient: bool = True) -> Put:
        """Write an object.

        Args:
            data: the contents; a file is read from its beginning.
            over: the ``etag`` of the version to replace; ``ABSENT``: the object must not exist yet; None: replace
                whatever is there.
            patient: whether to try again while the store does not answer.

        Raises:
            Changed: something else is there.
        """
        version = over if over is None or self.quotes_versions else over.strip('"')
        condition = {} if version is None else {"IfNoneMatch": "*"} if version == ABSENT else {"IfMatch": version}
        values = {"ContentMD5": _md5(data), **condition}
        tries = itertools.count()
        try:
            return self._ask(key, lambda: self._put(key, data, values, is_first=next(tries) == 0), patient=patient)
        except FileNotFoundError:  # so some stores answer a condition on an object that is missing
            if over is None:
                raise
            raise Changed(key) from None

    def _put(self, key: str, data: bytes | BinaryIO, values: dict[str, Any], *, is_first: bool) -> Put:
        """Send a PUT. If it is not the first, the object that is in the way may be ours: the answer was lost."""
        if not isinstance(data, bytes):
            data.seek(0)
        try:
            answer = self._client.put_object(Bucket=self.name, Key=key, Body=data, **values)
        except self._errors.ClientError as error:
            if not is_first and status_of(error) == 412 and isinstance(data, bytes):
                found = self._client.get_object(Bucket=self.name, Key=key)
                if found["Body"].read() == data:
                    return Put(etag=found["ETag"], time=_date(found))
            raise
        return Put(etag=answer["ETag"], time=_date(answer))

    def delete(self, key: str) -> None:
        """Remove an object, if it exists."""
        self._ask(key, lambda: self._client.delete_object(Bucket=self.name, Key=key))

    def list(self, prefix: str, *, delimiter: str = "/", limit: int | None = None) -> tuple[list[Found], list[str]]:
        """Return the objects whose keys begin with a prefix, and what those with a further delimiter have in common."""
        objects: list[Found] = []
        folders: list[str] = []
        more: dict[str, Any] = {} if limit is None else {"MaxKeys": limit}
        while True:
            page = self._ask(prefix, partial(self._list, prefix, delimiter, more))
            objects += [
                Found(key=each["Key"], etag=each["ETag"], num_bytes=each["Size"], written=_time(each["LastModified"]))
                for each in page.get("Contents", ())
            ]
            folders += [each["Prefix"] for each in page.get("CommonPrefixes", ())]
            if limit is not None or not page.get("IsTruncated"):
                return objects, folders
            more = {"ContinuationToken": page["NextContinuationToken"]}

    def now(self) -> float:
        """Return the store's time."""
        return _date(self._ask("", partial(self._list, "", "/", {"MaxKeys": 1})))

    def _list(self, prefix: str, delimiter: str, more: dict[str, Any]) -> Any:
        return self._client.list_objects_v2(Bucket=self.name, Prefix=prefix, Delimiter=delimiter, **more)

    def _found(self, key: str, answer: Any) -> Found:
        return Found(
            key=key, etag=answer["ETag"], num_bytes=answer["ContentLength"], written=_time(answer["LastModified"])
        )

    def _ask(self, key: str, request: Callable[[], Result], *, patient: bool = True) -> Result:
        """Return what a request returns, with every error as the store's methods raise it."""
        address = f"s3://{self.name}/{key}"

        def asked() -> Result:
            with self._translated(address):
                return request()

        if patient:
            return patiently(f"the store s3://{self.name}", asked)
        try:
            return asked()
        except Exception as error:
            if is_transient(error):
                raise ConnectionError(errno.ECONNABORTED, reason_of_trouble(error), address) from None
            raise

    @contextmanager
    def _translated(self, address: str) -> Iterator[None]:
        errors = self._errors
        try:
            yield
        except errors.ClientError as error:
            status, code = status_of(error), error.response.get("Error", {}).get("Code", "")
            if status == 416:
                raise _BeyondEnd from None
            if status == 412:
                raise Changed(address) from None
            if is_transient(error):
                raise
            if code in CONFLICTS:
                raise ConnectionError(first_line(error)) from None
            if code == "NoSuchBucket":
                raise OSError(errno.ENXIO, f"there is no bucket {self.name}", address) from None
            if status == 404:
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), address) from None
            reason = f"the store refuses it ({first_line(error)})"
            number = errno.EACCES if status in (401, 403) else errno.EIO
            raise OSError(number, reason, address) from None
        except (errors.NoCredentialsError, errors.PartialCredentialsError, errors.CredentialRetrievalError) as error:
            reason = f"{first_line(error)}. Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
            raise OSError(errno.EACCES, reason, address) from None
        except errors.BotoCoreError as error:
            if is_transient(error) or untrusted_certificate(error) is not None:
                raise
            raise OSError(errno.EINVAL, first_line(error), address) from None

    @property
    def _errors(self) -> Any:
        import botocore.exceptions

        return botocore.exceptions

    @cached_property
    def _client(self) -> Any:
        import botocore.session
        from botocore.config import Config

        config = Config(
            connect_timeout=CONNECT_SECS,
            read_timeout=READ_SECS,
            max_pool_connections=MAX_CONNECTIONS,
            retries={"total_max_attempts": 1},
            # Stores other than AWS do not know the newer checksums. The MD5 of every PUT is sent anyway.
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
        )
        return botocore.session.get_session().create_client("s3", config=config)


def check_client() -> None:
    """Check that the client is installed.

    Raises:
        UsageError: it is not.
    """
    try:
        import botocore.session  # noqa: F401
    except ImportError:
        raise UsageError(
            "s3:// needs a package that is not installed. Run: pip install 'dataset-inference-job[s3]'"
        ) from None


class _BeyondEnd(Exception):
    """A range begins where the object ends, or later."""


def _date(answer: Any) -> float:
    return parsedate_to_datetime(answer["ResponseMetadata"]["HTTPHeaders"]["date"]).timestamp()


def _time(written: Any) -> float:
    return float(written.timestamp())


def _md5(data: bytes | BinaryIO) -> str:
    """Return the checksum that the store compares with what it has received."""
    digest = hashlib.md5(usedforsecurity=False)
    if isinstance(data, bytes):
        digest.update(data)
    else:
        data.seek(0)
        while block := data.read(1 << 20):
            digest.update(block)
    return base64.b64encode(digest.digest()).decode()
