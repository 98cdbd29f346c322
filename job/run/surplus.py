"""Takes rows back that an engine has not begun: for workers that have none, or for the next launch."""

from job.engine.protocol import Engine
from job.records import Prompt, SampleKey


def withdraw(engine: Engine, pending: dict[SampleKey, Prompt], num_rows: int | None = None) -> list[int]:
    """Take rows back of which the engine has begun nothing, the last ones, and return them in ascending order.

    Args:
        pending: all that the engine has. Rows that are taken back are removed.
        num_rows: how many rows to take at most; None: all.
    """
    waiting = engine.withdraw()
    new = {request.key for request in waiting if request.attempt == 0}
    begun = {row_idx for row_idx, _ in pending.keys() - new}
    rows = sorted({row_idx for row_idx, _ in new} - begun)
    rows = rows if num_rows is None else rows[max(0, len(rows) - num_rows) :]
    chosen = set(rows)
    for request in waiting:
        if request.row_idx in chosen:
            pending.pop(request.key, None)
        else:
            engine.submit(request)
    return rows
