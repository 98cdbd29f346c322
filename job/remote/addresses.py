"""From what a user writes to what is meant: a repository of the Hub, an address of a store, or a path. Knows text only.

A repository of the Hub may be written as its id, as ``hf://``, or as its page's URL, each with a revision. All of them
become the id, the revision and the path in the repository. Other addresses are for ``fsspec`` (``stores``).
"""

import os
import re
from dataclasses import dataclass
from pathlib import PurePosixPath
from urllib.parse import unquote, urlsplit

from job.errors import UsageError
from job.wording import redacted

ADDRESS = re.compile(r"([a-z][a-z0-9+.-]+)://", re.IGNORECASE)
"""How an address begins. A single letter would be a drive."""

REPOSITORY = re.compile(r"(?P<name>[\w.-]+(?:/[\w.-]+)?)@(?P<revision>refs/\w+/\w+|[^/@\s]+)")
"""An id with a revision. Of the branches with slashes, only those of the Hub itself are known from a path."""

HF = re.compile(
    r"hf://(?P<kind>datasets/|models/|spaces/|buckets/)?(?P<name>[^/@]+(?:/[^/@]+)?)"
    r"(?:@(?P<revision>refs/(?:convert|pr)/[^/]+|[^/]+))?(?:/(?P<path>.*))?",
    re.IGNORECASE | re.DOTALL,
)

PAGE = re.compile(
    r"/(?P<kind>datasets/)?(?P<name>[\w.-]+/[\w.-]+?)"
    r"(?:/(?P<section>tree|blob|resolve|raw|commit)/(?P<revision>refs/(?:convert|pr)/[^/]+|[^/]+)(?:/(?P<path>.+?))?)?/*"
)
"""The path of a repository's page."""

HUB_HOSTS = ("huggingface.co", "www.huggingface.co", "hf.co")

NO_IDS = ("datasets", "spaces", "docs", "papers", "collections", "blog", "api", "models", "buckets")
"""How the paths of pages begin that do not belong to an organization."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HubAddress:
    """A repository of the Hub, or something in it."""

    name: str
    """``org/name``."""
    revision: str | None = None
    path: str = ""
    """A file, a directory or a glob in the repository. Empty: all of it."""
    is_file: bool = False
    """Whether the path is known to be of a file."""

    def pattern(self, endings: tuple[str, ...]) -> str:
        """Return the glob of the files that are meant; empty for all.

        Args:
            endings: in lower case, those of files.

        >>> HubAddress(name="o/n", path="data").pattern((".csv",))
        'data/**'
        >>> HubAddress(name="o/n", path="a.CSV").pattern((".csv",))
        'a.CSV'
        """
        if not self.path or self.is_file or is_pattern(self.path):
            return self.path
        suffixes = {suffix.lower() for suffix in PurePosixPath(self.path).suffixes}
        return self.path if suffixes.intersection(endings) else f"{self.path.rstrip('/')}/**"


def is_address(text: str) -> bool:
    """Whether a text is an address, and not a path or an id.

    >>> is_address("s3://bucket/key"), is_address("org/name"), is_address("C://x")
    (True, False, False)
    """
    return ADDRESS.match(text) is not None


def scheme_of(address: str) -> str:
    """Return how to reach an address: ``s3`` of ``S3://bucket/key``."""
    found = ADDRESS.match(address)
    assert found is not None
    return found[1].lower()


def is_pattern(address: str) -> bool:
    """Whether an address is a glob. In a URL of the web, ``?`` begins a query, and ``[`` may be one, too.

    >>> is_pattern("s3://b/?.csv"), is_pattern("https://h/a.csv?x=1"), is_pattern("https://h/*.csv")
    (True, False, True)
    """
    return bool(set(address) & set("*" if is_address(address) and is_web(address) else "*?["))


def hub_address(text: str, kind: str) -> HubAddress | None:
    """Return the repository of the Hub that a text means; None if it may be a path, and if it is a plain id.

    Args:
        kind: ``dataset`` or ``model``.

    Raises:
        UsageError: it is something else on the Hub.

    >>> hub_address("org/name@v1", "model")
    HubAddress(name='org/name', revision='v1', path='', is_file=False)
    >>> hub_address("hf://datasets/org/name@refs/pr/1/data/*.csv", "dataset")
    HubAddress(name='org/name', revision='refs/pr/1', path='data/*.csv', is_file=False)
    >>> hub_address("https://huggingface.co/datasets/org/name/blob/main/a%20b.csv?download=true", "dataset")
    HubAddress(name='org/name', revision='main', path='a b.csv', is_file=True)
    >>> hub_address("https://host/datasets/org/name", "dataset"), hub_address("org/name", "model")
    (None, None)
    """
    if text.lower().startswith("hf://"):
        return _of_scheme(text, kind)
    if is_address(text):
        return _of_page(text, kind)
    prefix = f"{kind}s/" if re.match(rf"{kind}s/[\w.-]+/[\w.-]+(@|$)", text) else ""
    if found := REPOSITORY.fullmatch(text.removeprefix(prefix)):
        return HubAddress(name=found["name"], revision=found["revision"])
    return HubAddress(name=text.removeprefix(prefix)) if prefix else None


def _of_scheme(text: str, kind: str) -> HubAddress:
    found = HF.fullmatch(text)
    prefix = {"dataset": "datasets/", "model": ""}[kind]
    if found is None:
        raise UsageError(f"--{kind} {text} names no repository. Write hf://{prefix}org/name.")
    actual = (found["kind"] or "models/").lower()
    if actual != f"{kind}s/":
        raise UsageError(
            f"--{kind} {text} is a {actual.rstrip('s/')} of the Hub. A {kind} is hf://{prefix}org/name, or org/name."
        )
    return _checked(text, kind, found["name"], found["revision"], found["path"] or "", is_file=False)


def _of_page(text: str, kind: str) -> HubAddress | None:
    try:
        url = urlsplit(text)
    except ValueError as error:
        raise UsageError(f"--{kind} {redacted(text)} is not an address: {error}.") from None
    if url.scheme.lower() not in ("http", "https") or url.netloc.lower() not in _hub_hosts():
        return None
    found = PAGE.fullmatch(unquote(url.path))
    advice = f"Give the page of a {kind} or of its files, or its id: org/name."
    if found is None or (not found["kind"] and found["name"].partition("/")[0] in NO_IDS):
        raise UsageError(f"--{kind} {text} is not the page of a {kind} on the Hub. {advice}")
    if bool(found["kind"]) != (kind == "dataset"):
        other = "dataset" if found["kind"] else "model"
        raise UsageError(f"--{kind} {text} is the page of a {other}. {advice}")
    is_file = found["section"] in ("blob", "resolve", "raw")
    return _checked(text, kind, found["name"], found["revision"], found["path"] or "", is_file=is_file)


def _hub_hosts() -> set[str]:
    """Return the hosts whose pages are those of the Hub: its own, and the one that is used in its place."""
    own = urlsplit(os.environ.get("HF_ENDPOINT", "")).netloc.lower()
    return {*HUB_HOSTS, own} - {""}


def _checked(text: str, kind: str, name: str, revision: str | None, path: str, *, is_file: bool) -> HubAddress:
    if path and kind == "model":
        raise UsageError(f"--model {text} names something inside a repository. Give the repository: {name}.")
    revision = None if revision is None else unquote(revision)
    return HubAddress(name=name, revision=revision, path=path.strip("/"), is_file=is_file)


def is_web(address: str) -> bool:
    """Whether an address is of a web server."""
    return scheme_of(address) in ("http", "https")


class Address(str):
    """An address for messages and for files that others read. What is secret in it is elsewhere: see ``full_address``.

    >>> shown = Address("https://me:pw@host/data.csv?token=1&expires=2")
    >>> shown, full_address(shown)
    ('https://***@host/data.csv?***', 'https://me:pw@host/data.csv?token=1&expires=2')
    """

    full: str

    def __new__(cls, full: str) -> "Address":
        """Hide what is secret."""
        scheme = ADDRESS.match(full)
        full = full if scheme is None else scheme[0].lower() + full[scheme.end() :]
        query = full[len(full.partition("?")[0]) :]
        plain = full.removesuffix(query)
        address = super().__new__(cls, redacted(plain) + ("?***" if redacted(query) != query else query))
        address.full = full
        return address

    def __getnewargs__(self) -> tuple[str]:
        """Return what a copy is made of."""
        return (self.full,)


def full_address(text: str) -> str:
    """Return an address with what is secret in it."""
    return text.full if isinstance(text, Address) else text
