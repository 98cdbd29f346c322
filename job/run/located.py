"""Where the model and the dataset of a run are: an id of the Hub in any spelling, an address, or a path."""

import re
from pathlib import Path
from typing import Any

from job.data.formats import ENDINGS, READERS, ending_of
from job.errors import UsageError
from job.output.store.addresses import check_local
from job.remote.addresses import Address, HubAddress, hub_address, is_address, scheme_of
from job.remote.refusals import of_adapter
from job.wording import flag

REVISIONS = {"model": "revision", "dataset": "dataset_revision"}

COMMA = re.compile(r",\s*(?=[a-z][a-z0-9+.-]+://)", re.IGNORECASE)
"""Between two addresses, which may have commas themselves."""


def located(values: dict[str, Any]) -> dict[str, Any]:
    """Return the values of the options with plain ids in place of the other spellings of repositories, and with
    addresses that can be shown.

    Raises:
        UsageError: something is named that cannot be read.
    """
    return values | _model(values) | _dataset(values)


def _model(values: dict[str, Any]) -> dict[str, Any]:
    adapters = {"adapter": tuple(map(_adapter, values["adapter"]))}
    if values["model"] is None:
        if not values["adapter"]:
            raise UsageError("--model is missing: a Hub id or a directory. (With --adapter, it may be left out.)")
        return {**adapters, "model": ""}
    return adapters | _named_model(values)


def _adapter(text: str) -> str:
    """Return an adapter's path, or its id on the Hub with the revision."""
    with of_adapter(text):
        found = _on_hub("model", text)
        if found is None:
            check_local("adapter", text, "Give a Hub id, or copy the adapter to a directory and give that.")
            if "/" not in text and not Path(text).exists():  # the Hub would be asked, for a minute if it is not there
                raise UsageError(
                    f"--adapter {text}: there is no such directory here, and an adapter of the Hub is OWNER/NAME. "
                    "Correct the path, or give both parts of the id."
                )
            return text
    return found.name if found.revision is None else f"{found.name}@{found.revision}"


def _named_model(values: dict[str, Any]) -> dict[str, Any]:
    text = values["model"]
    if (found := _on_hub("model", text)) is not None:
        return {"model": found.name, "revision": _revision("model", text, found, values)}
    check_local("model", text, "Give a Hub id, or copy the model to a directory and give that.")
    return {}


def _dataset(values: dict[str, Any]) -> dict[str, Any]:
    text, files = values["dataset"], values["data_files"]
    if (found := _on_hub("dataset", text)) is not None:
        pattern = found.pattern(ENDINGS)
        if pattern and files:
            raise UsageError(f"--dataset {text} names files, and --data-files was given, too. Give only one.")
        revision = _revision("dataset", text, found, values)
        return {"dataset": found.name, "dataset_revision": revision, "data_files": (pattern,) if pattern else files}
    if not is_address(text):
        return {"data_files": _data_files(text, files)}
    check_remote("dataset", text)
    _data_files(text, files)
    if values["dataset_revision"] is not None:
        raise UsageError(f"--dataset-revision is for datasets of the Hub, which --dataset {Address(text)} is not.")
    return {"dataset": Address(text)}


def _data_files(dataset: str, values: tuple[str, ...]) -> tuple[str, ...]:
    """Return the files with each address on its own."""
    files = tuple(part for value in values for part in (COMMA.split(value) if is_address(value) else [value]))
    if not any(map(is_address, files)):
        return values
    for file in filter(is_address, files):
        check_remote("data-files", file)
        if hub_address(file, "dataset") is not None:
            raise UsageError(f"--data-files {Address(file)} is on the Hub. Give it as --dataset.")
        if dataset not in READERS or Path(dataset).exists():
            raise UsageError(
                f"--data-files {Address(file)} is an address. Give it as --dataset; or say how to read it, with "
                f"--dataset {', '.join(READERS[:-1])} or {READERS[-1]}."
            )
    if not all(map(is_address, files)):
        raise UsageError("--data-files names files on this machine and elsewhere. Give files of one kind.")
    return tuple(map(Address, files))


def check_remote(option: str, address: str) -> None:
    """Check that an address may be one of files elsewhere.

    Raises:
        UsageError: it is one of a local file, or one that leads through another.
    """
    if scheme_of(address) in ("file", "local"):
        path = address.partition("://")[2].removeprefix("localhost")
        raise UsageError(f"--{option} {address} is the address of a local file. Write {path}.")
    if "::" in address:
        raise UsageError(f"--{option} {Address(address)}: an address inside another is not read. Unpack it first.")


def _on_hub(kind: str, text: str) -> HubAddress | None:
    """Return the repository that a text means, unless it looks like a file, or is one of this machine."""
    is_path = not is_address(text) and (ending_of(text) in ENDINGS or Path(text).exists())
    return None if is_path else hub_address(text, kind)


def _revision(kind: str, text: str, found: HubAddress, values: dict[str, Any]) -> str | None:
    given: str | None = values[REVISIONS[kind]]
    if None not in (found.revision, given) and found.revision != given:
        raise UsageError(
            f"--{kind} {text} names the revision {found.revision}, and {flag(REVISIONS[kind])} is {given}. Give one."
        )
    return found.revision or given
