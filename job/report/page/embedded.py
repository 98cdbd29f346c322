"""JSON in the form that it has within a page."""

import json
from typing import Any

ESCAPES = str.maketrans(
    {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"}  # all valid in JSON
)


def to_json(data: Any) -> str:
    r"""Return JSON that can stand in a script element.

    >>> to_json({"a": "</script>&"})
    '{"a":"\\u003c/script\\u003e\\u0026"}'
    """
    return json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False).translate(ESCAPES)
