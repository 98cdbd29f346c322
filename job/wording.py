"""Words that several messages have in common."""

import difflib
import itertools
import re
from collections.abc import Iterable
from pathlib import PurePath
from urllib.parse import urlsplit

MAX_COLUMNS = 50
"""How many columns of a dataset a message lists."""

UNLIMITED = 2**31 - 1
"""Stands for any number of tokens."""

SECRETS = (
    (re.compile(r"(://)[^/\s@'\"]+@"), r"\1***@"),
    (re.compile(r"([?&][^=&\s]*(?:sig|token|key|secret|pass|cred|auth|policy)[^=&\s]*=)[^&\s'\")]+", re.I), r"\1***"),
    (re.compile(r"(\bBearer\s+)[^\s'\"]+", re.IGNORECASE), r"\1***"),
    (re.compile(r"\bhf_[A-Za-z0-9]{20,}\b"), "hf_***"),
    (
        re.compile(
            r"(https://(?:hooks\.slack\.com/|discord(?:app)?\.com/api/webhooks/|[\w.-]+\.webhook\.office\.com/"
            r"|api\.telegram\.org/bot))[^\s'\")]+",
            re.IGNORECASE,
        ),
        r"\1***",
    ),
)
"""What would let a reader act as the user: passwords and signatures of addresses, headers, tokens of the Hub, and the
paths of the webhooks of Slack, Discord, Teams and Telegram."""


def redacted(text: str) -> str:
    """Return a text, such as an address or a library's message, without the secrets in it.

    >>> redacted("no answer from s3://me:pw@host/data?X-Amz-Signature=12ab&part=1")
    'no answer from s3://***@host/data?X-Amz-Signature=***&part=1'
    """
    for pattern, replacement in SECRETS:
        text = pattern.sub(replacement, text)
    return text


def flag(field: str) -> str:
    """Return the option of a field.

    >>> flag("max_new_tokens")
    '--max-new-tokens'
    """
    return "--" + field.replace("_", "-")


def listed(names: Iterable[str]) -> str:
    """Return names as a sentence lists them.

    >>> listed(["a"]), listed(["a", "b"]), listed("abc")
    ('a', 'a and b', 'a, b and c')
    """
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last


def meant(name: str, known: Iterable[str]) -> str | None:
    """Return which of the known names a misspelt one may mean; None if it is like none of them.

    >>> meant("temprature", ["top_p", "temperature"]), meant("colour", ["top_p"])
    ('temperature', None)
    """
    return next(iter(difflib.get_close_matches(name, list(known), n=1)), None)


def no_column(name: str, columns: Iterable[str]) -> str:
    """Return that a dataset lacks a column, with the one that may be meant.

    >>> no_column("questions", ["id", "question"]), no_column("x", [])
    ("no column 'questions'. Did you mean 'question'? Columns: id, question", "no column 'x'. Columns: none")
    """
    plain = {column.strip().casefold(): column for column in columns}
    close = meant(name.strip().casefold(), plain)
    question = "" if close is None else f" Did you mean {plain[close]!r}?"
    shown = list(itertools.islice(plain.values(), MAX_COLUMNS))
    more = f" and {len(plain) - len(shown)} more" if len(plain) > len(shown) else ""
    return f"no column {name!r}.{question} Columns: {', '.join(shown) or 'none'}{more}"


def public_name(name: str) -> str:
    """Return the name of a dataset or model as strangers may see it: what is private is left out.

    Of a path, that is all but the end; of an address, the user, the password and the query, which may be a signature.

    >>> public_name("org/name"), public_name("data/q.jsonl"), public_name("/home/me/data/q.jsonl"), public_name("../m/")
    ('org/name', 'data/q.jsonl', 'q.jsonl', 'm')
    >>> public_name("https://me:pass@host/q.jsonl?sig=1")
    'https://host/q.jsonl'
    """
    if "://" in name:
        address = urlsplit(name)
        return f"{address.scheme}://{address.netloc.rpartition('@')[2]}{address.path}"
    return PurePath(name).name or name if name.startswith(("/", ".", "~")) else name
