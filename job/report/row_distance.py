"""How far the numbers of a recomputed row are from those that it had, by kinds of columns, in logits.

What modes measure are log probabilities and what follows from them (in lists, or alone), and vectors. So one gap, that
of a near tie between two tokens, can be held against all of them.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from job.modes.mode import Mode

VECTOR_SCALE = 10.0
"""Logits are numbers of about this size: an error of a vector, relative to its length, is as large as one of this many
times that in a logit."""


def distance(
    modes: Sequence[Mode],
    stored: Mapping[str, Any],
    found: Mapping[str, Any],
    num_tokens: int,
    *,
    upto: int | None = None,
) -> tuple[float, str | None]:
    """Return the largest distance of any number, and its column; 0 and None if there are no numbers.

    A number alone, or one of a choice, is a sum over tokens, whose errors are taken to be independent: it is divided by
    the square root of their number.

    Args:
        stored: the values of measured columns, by name.
        found: the same, recomputed.
        num_tokens: of the completion.
        upto: compare the numbers of this many first tokens alone, because other ones follow. None: all numbers.
    """
    best: tuple[float, str | None] = (0.0, None)
    for mode in modes:
        for column in mode.measured():
            if column.name in mode.follow:
                continue
            each = _distance(column, stored.get(column.name), found.get(column.name), num_tokens, upto)
            best = max(best, (each, column.name), key=lambda pair: pair[0])
    return best


def _distance(column: pa.Field, stored: Any, found: Any, num_tokens: int, upto: int | None) -> float:
    kind = column.type
    is_list, is_vector = pa.types.is_list(kind), pa.types.is_fixed_size_list(kind)
    inner = kind.value_type if is_list or is_vector else kind
    if not (pa.types.is_floating(inner) or is_vector) or (stored is None and found is None):
        return 0.0
    if stored is None or found is None:
        return math.inf if upto is None else 0.0
    is_of_tokens = is_list and column.name.startswith("token_")
    if upto is not None:
        if not is_of_tokens:
            return 0.0
        stored, found = stored[:upto], found[:upto]
    a, b = (np.atleast_1d(np.asarray(value, np.float64)) for value in (stored, found))
    if a.shape != b.shape:
        return math.inf
    if is_vector:
        return VECTOR_SCALE * float(np.linalg.norm(a - b)) / max(float(np.linalg.norm(a)), 1e-12)
    largest = float(np.abs(a - b).max(initial=0.0, where=~((a == b) | (np.isnan(a) & np.isnan(b)))))
    return largest if is_of_tokens else largest / math.sqrt(max(1, num_tokens))
