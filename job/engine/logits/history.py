"""Which tokens have occurred in each row, for the penalties of the pipeline: kept from step to step, on the device.

A row says only where it is, what its tokens are, and how many of them are its prompt; everything that a penalty needs
is computed from that here.
"""

from collections.abc import Sequence
from typing import Protocol

import torch


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

    def seen(self, rows: Sequence[RowTokens], logits: torch.Tensor) -> torch.Tensor:
        """Return [len(rows), V] bool: the tokens in the prompt and the completion of each row.

        Args:
            logits: [., V] of the step, for their width and device.
        """
        if self._seen is None:
            self._seen = torch.zeros(len(self._rows), logits.shape[1], dtype=torch.bool, device=logits.device)
        new: list[tuple[int, int]] = []
        for row in rows:
            if self._rows[row.slot] is not row:  # another row had the slot
                self._seen[row.slot] = False
                self._num_seen[row.slot] = 0
            # Until the tensor is up to date, nobody owns the slot: if memory runs out, it is collected from scratch.
            self._rows[row.slot] = None
            new += [(row.slot, token) for token in row.token_ids[self._num_seen[row.slot] :]]
        slots, tokens = torch.tensor(new, dtype=torch.int64, device=logits.device).reshape(-1, 2).unbind(1)
        self._seen[slots, tokens] = True
        for row in rows:
            self._rows[row.slot], self._num_seen[row.slot] = row, len(row.token_ids)
        return self._seen[torch.tensor([row.slot for row in rows], device=logits.device)]


class Occurrences:
    """What has occurred in the rows of one step."""

    def __init__(self, history: TokenHistory, rows: Sequence[RowTokens]) -> None:
        """Ask this history about rows, one per row of the step's logits."""
        self._history, self._rows = history, rows

    def seen(self, rows: Sequence[int], logits: torch.Tensor) -> torch.Tensor:
        """Return [len(rows), V] bool: the tokens in the prompts and completions of some of the step's rows.

        Args:
            logits: [., V] of the step, for their width and device.
        """
        return self._history.seen([self._rows[row] for row in rows], logits)
