"""Reads slices of a source. Consecutive slices share one pass, so that a Parquet row group is decoded only once."""

from collections.abc import Iterator, Sequence
from itertools import chain

from job.data.source import Source, read_rows
from job.records import RowBlock


class SliceReader:
    """The only reader of its source: a streaming source keeps its position, which two passes at once would disturb."""

    def __init__(self, source: Source, name: str) -> None:
        """Wrap a source. Nothing is read until ``read`` is called.

        Args:
            name: the dataset as the user named it, for error messages.
        """
        self._source, self._name = source, name
        self._pass: Iterator[RowBlock] = iter(())
        self._next: tuple[int, Sequence[str], Sequence[str]] | None = None
        """The next row of the current pass, and the columns that the pass reads."""

    def read(self, rows: range, until: int, columns: Sequence[str], kept: Sequence[str]) -> list[RowBlock]:
        """Return the blocks of ``rows``.

        Args:
            until: end of the rows that are likely to be read next, after ``rows``.
            columns: columns whose values the rows must have.
            kept: columns that go into the blocks' Arrow tables.

        Raises:
            JobError: see ``read_rows``.
        """
        if self._next != (rows.start, columns, kept):
            self._pass = read_rows(self._source, self._name, range(rows.start, until), columns, kept)
        self._next = None  # in case reading fails
        blocks, position = [], rows.start
        while position < rows.stop:
            block = next(self._pass)
            head, tail = _split(block, rows.stop - position)
            blocks.append(head)
            position += len(head.rows)
            if tail.rows:
                self._pass = chain([tail], self._pass)
        self._next = (rows.stop, columns, kept) if rows.stop < until else None
        return blocks


def _split(block: RowBlock, num_rows: int) -> tuple[RowBlock, RowBlock]:
    head = RowBlock(rows=block.rows[:num_rows], kept=block.kept.slice(0, num_rows))
    return head, RowBlock(rows=block.rows[num_rows:], kept=block.kept.slice(num_rows))
