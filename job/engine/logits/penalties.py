"""Penalties: tokens that have occurred become less likely, or more.

Letters: B rows, V vocabulary.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch

from job.engine.logits.history import Occurrences
from job.engine.logits.sampling import SamplingBatch
from job.engine.transfers import Parcel
from job.tasks import SamplingParams


def penalizes(params: SamplingParams) -> bool:
    """Whether a row has a penalty."""
    return _penalizes_repetition(params) or _penalizes_occurrence(params)


def _penalizes_repetition(params: SamplingParams) -> bool:
    return params.repetition_penalty != 1


def _penalizes_occurrence(params: SamplingParams) -> bool:
    return params.frequency_penalty != 0 or params.presence_penalty != 0


def penalize_repetition(logits: torch.Tensor, seen: torch.Tensor, penalty: torch.Tensor) -> torch.Tensor:
    """Make tokens that have occurred less likely (Keskar et al. 2019, "CTRL").

    Args:
        logits: [B, V] float32.
        seen: [B, V] bool, True for tokens of the prompt and of the completion so far.
        penalty: [B, 1] float32.
    """
    return torch.where(seen, torch.where(logits > 0, logits / penalty, logits * penalty), logits)


def _penalize_occurrence(
    logits: torch.Tensor, counts: torch.Tensor, frequency: torch.Tensor, presence: torch.Tensor
) -> torch.Tensor:
    """Make tokens that were generated less likely, as OpenAI's API documents it.

    Args:
        logits: [B, V] float32.
        counts: [B, V] int32: how often each token was generated.
        frequency: [B, 1] float32, taken off once for each time.
        presence: [B, 1] float32, taken off once.
    """
    return logits - frequency * counts - presence * (counts > 0)


class Penalties:
    """The penalties of a batch for tokens that have occurred."""

    def __init__(self, batch: SamplingBatch, occurred: Occurrences, vocab_size: int, parcel: Parcel) -> None:
        """Add the numbers that they need to a parcel."""
        self._vocab_size, self._parcel = vocab_size, parcel
        self._steps = [
            *self._step(batch, _penalizes_repetition, ["repetition_penalty"], occurred.seen, penalize_repetition),
            *self._step(
                batch,
                _penalizes_occurrence,
                ["frequency_penalty", "presence_penalty"],
                occurred.counts,
                _penalize_occurrence,
            ),
        ]

    def __call__(self, scores: torch.Tensor) -> torch.Tensor:
        """Return scores [B, V] float32 with the penalties."""
        for step in self._steps:
            scores = step(scores)
        return scores

    def _step(
        self,
        batch: SamplingBatch,
        condition: Callable[[SamplingParams], bool],
        names: Sequence[str],
        look_up: Callable[[Sequence[int], int, Parcel], Callable[[], torch.Tensor]],
        penalize: Callable[..., torch.Tensor],
    ) -> list[Callable[[torch.Tensor], torch.Tensor]]:
        """Return what applies one kind of penalty to the rows that have it; nothing if none has.

        Args:
            condition: whether a row has it.
            names: the parameters that it takes.
            look_up: finds what has occurred in some rows.
        """
        rows = batch.rows_where(condition)
        if not rows:
            return []
        penalized = batch if len(rows) == len(batch) else batch.select(rows)
        numbers = [self._parcel.add(penalized.numbers(name)) for name in names]
        occurred, index = look_up(rows, self._vocab_size, self._parcel), self._parcel.add(np.array(rows, np.int64))

        def apply(scores: torch.Tensor) -> torch.Tensor:
            if len(rows) == len(batch):
                return penalize(scores, occurred(), *(number() for number in numbers))
            some = penalize(scores.index_select(0, index()), occurred(), *(number() for number in numbers))
            return scores.index_copy(0, index(), some)

        return [apply]
