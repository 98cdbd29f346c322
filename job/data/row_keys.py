"""What a row asks, as 16 bytes: rows with the same key have the same request in every run that treats rows alike.

The key is made of the row's values in the columns that prompts and modes read, with their names and types. Templates,
chat templates and tokenization are functions of these, so nothing has to be rendered.
"""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from job.records import KEY_BYTES, Row


def key_of(row: Row, columns: Sequence[str]) -> bytes | None:
    """Return the key of a row; None if it cannot be read, so that it asks nothing.

    >>> one, other = (Row(row_idx=idx, values={"q": text, "id": idx}) for idx, text in enumerate(["a", "a"]))
    >>> key_of(one, ["q"]) == key_of(other, ["q"]), key_of(one, ["q", "id"]) == key_of(other, ["q", "id"])
    (True, False)
    """
    if row.error is not None:
        return None
    values = row.values
    text = "".join([_written(name) + _written(values.get(name)) for name in columns])
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=KEY_BYTES).digest()


def _written(value: Any) -> str:
    """Return a text from which the value, with its type, could be read back: no two values share one.

    The order of an object's members counts, since a template can show it.

    >>> _written("a"), _written(1), _written(True), _written([None, {"b": 1.0}])
    ('s1:a', 'int1:1', 'bool4:True', 'l2:NoneType4:Noned1:s1:bfloat3:1.0')
    """
    if type(value) is str:
        return f"s{len(value)}:{value}"
    if isinstance(value, Mapping):
        members = "".join([_written(key) + _written(inner) for key, inner in value.items()])
        return f"d{len(value)}:{members}"
    if isinstance(value, list | tuple):
        return f"l{len(value)}:{''.join(map(_written, value))}"
    text = repr(value)
    return f"{type(value).__name__}{len(text)}:{text}"
