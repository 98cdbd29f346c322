"""Reading many small files: in threads, since on a network file system every one of them is a wait."""

import math
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

NUM_THREADS = 32
MAX_CHUNK = 256
"""Items per task: a task for every file would cost more than reading it from a local disk."""


def read_many(
    read: Callable[[Item], Result], items: Sequence[Item], *, until: float = math.inf
) -> list[tuple[Item, Result]]:
    """Call a function for each item.

    Args:
        until: by ``time.monotonic()``; what has not been started by then is left out.

    Returns:
        Items with their results, in order.
    """

    def work(chunk: Sequence[Item]) -> list[tuple[Item, Result]]:
        results = []
        for item in chunk:
            if time.monotonic() >= until:
                break
            results.append((item, read(item)))
        return results

    size = max(1, min(MAX_CHUNK, len(items) // NUM_THREADS))
    chunks = [items[start : start + size] for start in range(0, len(items), size)]
    with ThreadPoolExecutor(NUM_THREADS) as pool:
        return [pair for pairs in pool.map(work, chunks) for pair in pairs]
