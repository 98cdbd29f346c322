"""The code that a model may bring along, and where transformers gets it from (``--trust-remote-code``)."""

import json
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from job.errors import UsageError, first_line
from job.remote.model_files import ModelFiles
from job.wording import listed

NAMING_FILES = ("config.json", "tokenizer_config.json")
"""Files whose ``auto_map`` names classes: ``module.Class``, or ``org/name--module.Class`` in another repository."""


def check_code(files: ModelFiles, *, trust_remote_code: bool) -> None:
    """Check that all code lies beside the model: code in another repository could change at any moment.

    Raises:
        UsageError: it does not.
    """
    own = None if files.repository is None else files.repository.name
    for reference in _references(files) if trust_remote_code else ():
        repository = reference.partition("--")[0]
        if "--" in reference and repository != own:
            raise UsageError(
                f"--model {files.name}: its code lies in another repository ({repository}), which can change during a "
                "run. Copy both into one directory ('hf download ... --local-dir DIR'), delete "
                f"'{repository}--' from its config.json and tokenizer_config.json, and name the directory."
            )


def code_options(files: ModelFiles, trust_remote_code: bool) -> dict[str, Any]:
    """Return the options for transformers that say whether code is run, and at which commit."""
    if not trust_remote_code:
        return {"trust_remote_code": False}
    return {"trust_remote_code": True} | ({} if files.commit is None else {"code_revision": files.commit})


def why_unreadable(files: ModelFiles, error: Exception) -> str:
    """Return why transformers could not read something of a model."""
    own_code = sorted({*map(_module, _references(files))})
    if "trust_remote_code" in str(error) and own_code:
        return (
            f"it has code of its own ({listed(own_code)}), which runs with your permissions. Read it, then give "
            "--trust-remote-code."
        )
    return first_line(error)


def _module(reference: str) -> str:
    """Return the file of a class.

    >>> _module("modeling_x.XModel"), _module("org/name--modeling_x.XModel")
    ('modeling_x.py', 'org/name/modeling_x.py')
    """
    return f"{reference.rpartition('.')[0].replace('--', '/')}.py"


def _references(files: ModelFiles) -> Iterator[str]:
    for name in NAMING_FILES:
        with suppress(OSError, ValueError, AttributeError):
            found = json.loads((files.directory / name).read_text(encoding="utf-8")).get("auto_map") or {}
            yield from _texts(found)


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _texts(inner)
