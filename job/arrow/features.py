"""Hugging Face's ``features``, which Arrow files carry as metadata: what the columns are beyond their Arrow types."""

import json
from collections.abc import Mapping
from typing import Any

KEY = b"huggingface"


def known_features(metadata: Mapping[bytes, bytes] | None) -> dict[bytes, bytes] | None:
    """Return a schema's metadata without features that the installed ``datasets`` cannot read.

    A newer version may have written them, or another program. The Arrow type says enough for reading such a column.
    """
    if not metadata or KEY not in metadata:
        return None if metadata is None else dict(metadata)
    try:
        content = json.loads(metadata[KEY])
        features = {name: value for name, value in content["info"]["features"].items() if _is_known(name, value)}
    except (ValueError, LookupError, TypeError, AttributeError):  # not the JSON of datasets
        return {key: value for key, value in metadata.items() if key != KEY}
    content["info"]["features"] = features
    return {**metadata, KEY: json.dumps(content).encode()}


def _is_known(name: str, feature: Any) -> bool:
    import datasets

    try:
        return datasets.Features.from_dict({name: feature}).arrow_schema is not None
    except Exception:  # whatever it is: this version of datasets cannot use it
        return False
