"""``manifest.json``: what a run is. Written once by whoever comes first, compared by everyone after (law 4).

``identity`` holds every value that can change the output; a restart must agree with it in all of them. ``about`` is
for people: when, which versions, where the model lay.
"""

import hashlib
import json
from dataclasses import dataclass
from fnmatch import fnmatch
from typing import Any

from job.errors import UsageError
from job.output.store.names import MANIFEST, PART_PATTERN
from job.output.store.store import Store

FORMAT_VERSION = 2


@dataclass(frozen=True, slots=True)
class Manifest:
    """A run's identity and its circumstances; both are JSON values."""

    identity: dict[str, Any]
    about: dict[str, Any]

    @property
    def digest(self) -> str:
        """SHA-256 of the identity, hexadecimal. Every part file carries it."""
        return hashlib.sha256(json.dumps(self.identity, sort_keys=True).encode()).hexdigest()

    def to_json(self) -> str:
        """Return the text of ``manifest.json``."""
        content = {"format_version": FORMAT_VERSION, "identity": self.identity, "about": self.about}
        return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


def read_manifest(store: Store) -> Manifest | None:
    """Read the manifest of a run directory; None if there is none.

    Raises:
        UsageError: the file is not one that this version wrote.
    """
    path = store.describe(MANIFEST)
    try:
        content = json.loads(store.read(MANIFEST))
        if content["format_version"] != FORMAT_VERSION:
            raise UsageError(
                f"{path} has format {content['format_version']}; this version reads {FORMAT_VERSION}. "
                "Use the version that made it; a run needs a new --output."
            )
        return Manifest(content["identity"], content["about"])
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{path} is not a manifest ({error!r}); a run needs a new --output.") from None


def claim_run_directory(store: Store, wanted: Manifest) -> Manifest:
    """Make the directory this run's, or continue the same run in it.

    Returns:
        The manifest on disk, whoever wrote it.

    Raises:
        UsageError: the directory belongs to another run; the message names each field with both values.
    """
    has_parts = any(
        fnmatch(entry.name, PART_PATTERN) for entry in store.list()
    )  # looked up first: a manifest is always older than its parts
    found = read_manifest(store)
    if found is None and has_parts:
        raise UsageError(
            f"{store.describe()} has part files, but no manifest.json that says what they are. Use a new --output."
        )
    if found is None:
        store.create_exclusively(MANIFEST, wanted.to_json().encode())
        found = read_manifest(store)
        assert found is not None, "the manifest was just created, here or by another process"
    _refuse_if_different(store, found, wanted)
    return found


def _refuse_if_different(store: Store, found: Manifest, wanted: Manifest) -> None:
    # Through JSON, as what was found: a tuple comes back as a list.
    was, now = _flatten(found.identity), _flatten(json.loads(json.dumps(wanted.identity)))
    different = [name for name in was | now if was.get(name) != now.get(name)]
    if not different:
        return
    shown = [f"{name} was {_show(was.get(name))}, now {_show(now.get(name))}" for name in different]
    raise UsageError(
        f"{store.describe(MANIFEST)} is another run: {'; '.join(shown)}. Use a new --output, or the old value."
    )


def _flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, dict):
        return {prefix: value}
    items: dict[str, Any] = {}
    for key, inner in value.items():
        items |= _flatten(inner, f"{prefix}.{key}" if prefix else key)
    return items


def _show(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False) if isinstance(value, str) else str(value)
    return text if len(text) <= 80 else f"{text[:60]}... ({len(text)} characters)"
