"""Which tokens each slot of the paged engine has seen, for the repetition penalty: kept from step to step."""

from collections import abc

import torch

from job.engine.paged.schedule.sequences import Sequence


class SeenTokens:
    """Remembers the tokens of the sequences in all slots, on the device that the logits are on."""

    def __init__(self, num_slots: int) -> None:
        """Start empty; memory is allocated for the first row that asks."""
        self._num_slots = num_slots
        self._seen: torch.Tensor | None = None
        self._num_seen = [0] * num_slots

    def of(self, rows: abc.Sequence[Sequence], logits: torch.Tensor) -> torch.Tensor:
        """Return [len(rows), V] bool.

        A slot's tokens are collected from scratch when its sequence first asks after an admission: before that, the
        slot had another row, or the sequence another slot.

        Args:
            logits: [., V] of the step, for their width and device.
        """
        device = logits.device
        if self._seen is None:
            self._seen = torch.zeros(self._num_slots, logits.shape[1], dtype=torch.bool, device=device)
        new: list[tuple[int, int]] = []
        for row in rows:
            if row.is_new_in_slot:
                self._seen[row.slot] = False
                self._num_seen[row.slot] = 0
                row.is_new_in_slot = False
            new += [(row.slot, token) for token in row.token_ids[self._num_seen[row.slot] :]]
            self._num_seen[row.slot] = len(row.token_ids)
        new_slots, new_tokens = torch.tensor(new, dtype=torch.int64, device=device).reshape(-1, 2).unbind(1)
        self._seen[new_slots, new_tokens] = True
        return self._seen[torch.tensor([row.slot for row in rows], device=device)]
