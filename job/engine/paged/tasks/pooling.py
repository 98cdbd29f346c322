"""Pooling: what a step gives for tokens becomes one vector of each text. Nothing is generated.

The vector of the last token needs that token's numbers alone, so a common beginning of texts is computed once. A mean
needs those of all tokens, and shares nothing: it is added up as the parts of a long text are computed.
"""

from collections import abc
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from job.engine.model.loading import LoadedModel
from job.engine.paged.schedule.sequences import Sequence
from job.engine.paged.schedule.work import Work
from job.engine.paged.tasks.logits_task import Outcome
from job.engine.transfers import Download, Upload
from job.records import Generation, Request
from job.tasks import Pool

Vectors = npt.NDArray[np.float32]


@dataclass(slots=True)
class Sum:
    """The sum over the tokens of a text so far: [D] float64."""

    total: npt.NDArray[np.float64]
    num_tokens: int


class PendingVectors:
    """Sums over tokens that the device may still be computing."""

    tokens = None
    """No token is chosen."""

    def __init__(self, logits: torch.Tensor, counts: abc.Sequence[int]) -> None:
        """Start to add up the numbers of tokens.

        Args:
            logits: [W, D], in the model's dtype.
            counts: [B], how many consecutive tokens are added up each time; at least 1.
        """
        sums = logits.float()
        if len(counts) < len(logits):
            [lengths] = Upload(logits.device)(np.array(counts, np.int64))
            sums = torch.segment_reduce(sums, "sum", lengths=lengths)
        self._copied = Download(sums)

    def result(self) -> Vectors:
        """Wait for them, and return [B, D]."""
        return self._copied.result()


class Pooling:
    """Implements ``LogitsTask`` for ``Pool``."""

    def __init__(self, model: LoadedModel, *, num_slots: int) -> None:
        """Start without requests."""
        self._sums: dict[Sequence, Sum] = {}

    def begin(self, request: Request) -> list[Sequence]:
        """See ``LogitsTask``."""
        assert isinstance(request.task, Pool)
        wanted_from = {"last": None, "mean": 0}[request.task.pooling]
        return [Sequence(request, list(request.prompt_ids), wanted_from=wanted_from)]

    def expect(self, work: abc.Sequence[Work]) -> None:
        """See ``LogitsTask``."""

    def start(self, work: abc.Sequence[Work], logits: torch.Tensor) -> PendingVectors:
        """See ``LogitsTask``."""
        return PendingVectors(logits, [item.num_wanted for item in work])

    def take(self, work: abc.Sequence[Work], result: Vectors) -> Outcome:
        """See ``LogitsTask``."""
        non_finite, ended, generations = [], [], []
        for item, vector in zip(work, result, strict=True):
            row = item.sequence
            if not np.isfinite(vector).all():
                non_finite.append(row)
                self._sums.pop(row, None)
                continue
            if row.wanted_from is not None:
                vector = self._added(item, vector)
            if item.end == len(row.token_ids):
                ended.append(row)
                generations.append(row.request.pooled(np.array(vector, np.float32)))
                self._sums.pop(row, None)
        return Outcome(ended=ended, non_finite=non_finite, generations=generations)

    def fail(self, sequence: Sequence, failure: Generation) -> list[Generation]:
        """See ``LogitsTask``."""
        self._sums.pop(sequence, None)
        return [failure]

    def _added(self, item: Work, vector: Vectors) -> npt.NDArray[np.float64]:
        """Add the next tokens of a text to its sum, and return the mean so far."""
        if item.start == 0:  # perhaps once more: a row that lost its pages is computed from its first token
            self._sums[item.sequence] = Sum(np.zeros(len(vector)), 0)
        sums = self._sums[item.sequence]
        assert sums.num_tokens == item.start, "every token is added once"
        sums.total += vector
        sums.num_tokens = item.end
        return sums.total / sums.num_tokens
