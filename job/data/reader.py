"""Reads slices of a source. Consecutive slices share one pass, so that a Parquet row group is decoded only once."""

from collections.abc import Iterator, Sequence

from job.data.ahead import Ahead
from job.data.source import Source, read_rows
from job.records import RowBlock


class SliceReader:
    """Reads one slice after the other. What comes over a network is read by a thread, ahead of the slices."""

    def __init__(self, source: Source, name: str) -> None:
        """Wrap a source. Nothing is read until ``read`` is called.

        Args:
            name: the dataset as the user named it, for error messages.
        """
        self._source, self._name = source, name
        self._pass: Iterator[RowBlock | None] = iter(())
        self._next: tuple[int, Sequence[str], Sequence[str]] | None = None
        """The next row of the pass, and the columns that the pass reads."""
        self._until = 0
        """Where the pass ends."""
        self._rest: RowBlock | None = None
        """What is left of the last block of the pass."""
        self._slice: list[RowBlock] = []
        """What has been read of a slice that is not complete yet."""
        self.is_waiting = False
        """Whether the slice that was asked for last is not there yet."""

    def read(self, rows: range, until: int, columns: Sequence[str], kept: Sequence[str]) -> list[RowBlock] | None:
        """Return the blocks of ``rows``, or None while they are not there yet: ask again for the same rows.

        Args:
            until: end of the rows that are likely to be read next, after ``rows``.
            columns: columns whose values the rows must have.
            kept: columns that go into the blocks' Arrow tables.

        Raises:
            JobError: see ``read_rows``.
        """
        position = rows.start + sum(len(block.rows) for block in self._slice)
        if self._next != (position, columns, kept) or rows.stop > self._until:
            self._begin(rows.start, until, columns, kept)
            position = rows.start
        while position < rows.stop:
            self._next = None  # in case reading fails
            block = self._rest or next(self._pass)
            if block is not None:
                head, self._rest = _split(block, rows.stop - position)
                self._slice.append(head)
                position += len(head.rows)
            self._next = (position, columns, kept)
            if block is None:
                self.is_waiting = True
                return None
        blocks, self._slice, self.is_waiting = self._slice, [], False
        return blocks

    def wait(self, secs: float) -> bool:
        """Wait until more of the slice that was asked for last is there. False if it takes longer."""
        return not isinstance(self._pass, Ahead) or self._pass.wait(secs)

    def close(self) -> None:
        """Let the thread end, if there is one."""
        if isinstance(self._pass, Ahead):
            self._pass.close()

    def _begin(self, start: int, until: int, columns: Sequence[str], kept: Sequence[str]) -> None:
        self.close()
        blocks = read_rows(self._source, self._name, range(start, until), columns, kept)
        self._pass = Ahead(blocks) if self._source.is_remote else blocks
        self._next, self._until, self._rest, self._slice = (start, columns, kept), until, None, []
        self.is_waiting = False


def _split(block: RowBlock, num_rows: int) -> tuple[RowBlock, RowBlock | None]:
    if len(block.rows) <= num_rows:
        return block, None
    head = RowBlock(rows=block.rows[:num_rows], kept=block.kept.slice(0, num_rows))
    return head, RowBlock(rows=block.rows[num_rows:], kept=block.kept.slice(num_rows))
