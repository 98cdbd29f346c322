"""Which tokens have occurred in each row, for the penalties of the pipeline: kept from step to step, on the device.

A row says only where it is, what its tokens are, and how many of them are its prompt; everything that a penalty needs
is computed from that here. A token counts once it is among the row's tokens, so a choice that is thrown away leaves no
trace.

Letters: B rows, V vocabulary.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
import torch

from job.engine.transfers import Parcel


class RowTokens(Protocol):
    """The tokens of a row. They are only ever appended to, and the object is the same as long as the row is."""

    @property
    def slot(self) -> int:
        """The row's place in the engine, which no other row has at the same time. It may change between steps."""

    @property
    def token_ids(self) -> Sequence[int]:
        """Prompt and completion so far."""

    @property
    def num_prompt(self) -> int:
        """How many of the tokens are the prompt's; the others were generated."""


class TokenHistory:
    """Remembers the tokens of the rows in all slots, on the device that the logits are on."""

    def __init__(self, num_slots: int) -> None:
        """Start empty; memory is allocated for the first row that has a penalty."""
        self._seen: torch.Tensor | None = None
        self._rows: list[RowTokens | None] = [None] * num_slots
        """Whose tokens are remembered for each slot. None: unknown."""
        self._num_seen = [0] * num_slots

    def of(self, rows: Sequence[RowTokens]) -> "Occurrences":
        """Return what has occurred in the rows of a step. Costs nothing until it is asked."""
        return Occurrences(self, rows)

    def seen(self, rows: Sequence[RowTokens], vocab_size: int, parcel: Parcel) -> Callable[[], torch.Tensor]:
        """Add what is new in some rows to a parcel, and return what gives the tokens that have occurred in them.

        Returns:
            A function that returns [len(rows), V] bool, on the parcel's device. To be called once, before this again.
        """
        if self._seen is None:
            self._seen = torch.zeros(len(self._rows), vocab_size, dtype=torch.bool, device=parcel.device)
        memory, fresh, places = self._seen, [], []
        for row in rows:
            slot = row.slot
            if self._rows[slot] is not row:  # another row had the slot
                fresh.append(slot)
                self._num_seen[slot] = 0
            # Until the tensor is up to date, nobody owns the slot: if memory runs out, it is collected from scratch.
            self._rows[slot] = None
            begin = slot * vocab_size
            places += [begin + token for token in row.token_ids[self._num_seen[slot] :]]
        # Filled by an index and a number: a number that is assigned to ``memory[index]`` is copied to the device first.
        cleared, added = parcel.add(np.array(fresh, np.int64)), parcel.add(np.array(places, np.int64))
        slots = parcel.add(np.array([row.slot for row in rows], np.int64))

        def update() -> torch.Tensor:
            memory.index_fill_(0, cleared(), False)
            memory.view(-1).index_fill_(0, added(), True)
            for row in rows:
                self._rows[row.slot], self._num_seen[row.slot] = row, len(row.token_ids)
            return memory.index_select(0, slots())

        return update


class Occurrences:
    """What has occurred in the rows of one step."""

    def __init__(self, history: TokenHistory, rows: Sequence[RowTokens]) -> None:
        """Ask this history about rows, one per row of the step's logits."""
        self._history, self._rows = history, rows

    def seen(self, rows: Sequence[int], vocab_size: int, parcel: Parcel) -> Callable[[], torch.Tensor]:
        """Do ``TokenHistory.seen`` for some of the step's rows."""
        return self._history.seen([self._rows[row] for row in rows], vocab_size, parcel)
