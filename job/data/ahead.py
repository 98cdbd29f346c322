"""A thread that reads ahead of whoever takes the blocks, so that the engine's loop never waits for a network."""

import threading
from collections import deque
from collections.abc import Iterator

from job.records import RowBlock

MAX_BLOCKS, MAX_BYTES = 16, 64 << 20
"""How far the thread reads ahead: until either is reached, but always one block."""


class Ahead(Iterator[RowBlock | None]):
    """The blocks of a pass, which a thread of its own reads. Yields None where the next block is not there yet."""

    def __init__(self, blocks: Iterator[RowBlock]) -> None:
        """Start to read. Only the thread uses ``blocks`` from now on."""
        self._changed = threading.Condition()
        self._read: deque[tuple[RowBlock, int]] = deque()
        self._num_bytes = 0
        self._end: Exception | None = None
        """Why the thread has ended: ``StopIteration``, or what reading raised. It is raised after the last block."""
        self._is_closed = False
        threading.Thread(target=self._run, args=(blocks,), name="reading", daemon=True).start()

    def __next__(self) -> RowBlock | None:
        with self._changed:
            if self._read:
                block, num_bytes = self._read.popleft()
                self._num_bytes -= num_bytes
                self._changed.notify_all()
                return block
            if self._end is not None:
                raise self._end
            return None

    def wait(self, secs: float) -> bool:
        """Wait until the next block is there, or until there is no other. False if it takes longer."""
        with self._changed:
            return self._changed.wait_for(lambda: bool(self._read) or self._end is not None, secs)

    def close(self) -> None:
        """Let the thread end, after the block that it is reading."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()

    def _run(self, blocks: Iterator[RowBlock]) -> None:
        end: Exception = StopIteration()
        try:
            for block in blocks:
                if not self._put(block, _num_bytes(block)):
                    return
        except Exception as error:
            end = error
        with self._changed:
            self._end = end
            self._changed.notify_all()

    def _put(self, block: RowBlock, num_bytes: int) -> bool:
        """Add a block once there is room for it. False if nobody will take it."""
        with self._changed:
            self._changed.wait_for(lambda: self._is_closed or self._has_room(num_bytes))
            self._read.append((block, num_bytes))
            self._num_bytes += num_bytes
            self._changed.notify_all()
            return not self._is_closed

    def _has_room(self, num_bytes: int) -> bool:
        return not self._read or (len(self._read) < MAX_BLOCKS and self._num_bytes + num_bytes <= MAX_BYTES)


def _num_bytes(block: RowBlock) -> int:
    """Return about how much memory a block takes."""
    texts = (value for row in block.rows for value in row.values.values() if isinstance(value, str))
    return sum(map(len, texts)) + int(block.kept.nbytes)
