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
        self.all = _Counts(num_slots, torch.bool, has_prompt=True)
        self.generated = _Counts(num_slots, torch.int32, has_prompt=False)

    def of(self, rows: Sequence[RowTokens]) -> "Occurrences":
        """Return what has occurred in the rows of a step. Costs nothing until it is asked."""
        return Occurrences(self, rows)


class Occurrences:
    """What has occurred in the rows of one step."""

    def __init__(self, history: TokenHistory, rows: Sequence[RowTokens]) -> None:
        """Ask this history about rows, one per row of the step's logits."""
        self._history, self.rows = history, rows

    def seen(self, rows: Sequence[int], vocab_size: int, parcel: Parcel) -> Callable[[], torch.Tensor]:
        """Return what gives, for some of the step's rows, the tokens of prompt and completion: [len(rows), V] bool.

        Adds what is new in these rows to a parcel. The function is to be called once, before this is asked again.
        """
        return self._history.all.of([self.rows[row] for row in rows], vocab_size, parcel)

    def counts(self, rows: Sequence[int], vocab_size: int, parcel: Parcel) -> Callable[[], torch.Tensor]:
        """Return the same for how often each token was generated: [len(rows), V] int32."""
        return self._history.generated.of([self.rows[row] for row in rows], vocab_size, parcel)


class _Counts:
    """How often each token has occurred in the rows in all slots, or whether it has."""

    def __init__(self, num_slots: int, dtype: torch.dtype, *, has_prompt: bool) -> None:
        """Start without memory.

        Args:
            dtype: bool to know only whether a token has occurred.
            has_prompt: whether the tokens of the prompt count, too.
        """
        self._num_slots, self._dtype, self._has_prompt = num_slots, dtype, has_prompt
        self._memory: torch.Tensor | None = None
        self._rows: list[RowTokens | None] = [None] * num_slots
        """Whose tokens are counted for each slot. None: unknown."""
        self._num_counted = [0] * num_slots

    def of(self, rows: Sequence[RowTokens], vocab_size: int, parcel: Parcel) -> Callable[[], torch.Tensor]:
        """See ``Occurrences.seen``."""
        if self._memory is None:
            self._memory = torch.zeros(self._num_slots, vocab_size, dtype=self._dtype, device=parcel.device)
        memory, fresh, places = self._memory, [], []
        for row in rows:
            slot = row.slot
            if self._rows[slot] is not row:  # another row had the slot
                fresh.append(slot)
                self._num_counted[slot] = 0 if self._has_prompt else row.num_prompt
            # Until the tensor is up to date, nobody owns the slot: if memory runs out, it is collected from scratch.
            self._rows[slot] = None
            begin = slot * vocab_size
            places += [begin + token for token in row.token_ids[self._num_counted[slot] :]]
        # Filled by an index and a number: a number that is assigned to ``memory[index]`` is copied to the device first.
        cleared, added = parcel.add(np.array(fresh, np.int64)), parcel.add(np.array(places, np.int64))
        slots = parcel.add(np.array([row.slot for row in rows], np.int64))

        def update() -> torch.Tensor:
            memory.index_fill_(0, cleared(), 0)
            if self._dtype is torch.bool:
                memory.view(-1).index_fill_(0, added(), True)
            else:
                memory.view(-1).index_add_(0, added(), torch.ones_like(added(), dtype=self._dtype))
            for row in rows:
                self._rows[row.slot], self._num_counted[row.slot] = row, len(row.token_ids)
            return memory.index_select(0, slots())

        return update
