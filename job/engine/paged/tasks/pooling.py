"""Pooling: what a step gives for tokens becomes one vector of each text. Nothing is generated.

The vector of the last token needs that token's numbers alone, so a common beginning of texts is computed once. A mean
needs those of all tokens, and shares nothing: it is added up as the parts of a long text are computed.
"""

from collections import abc
from dataclasses import dataclass
from typing import Any

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
    weight: float = 0.0
    """How often all of them count together."""


class PendingVectors:
    """Sums over tokens that the device may still be computing."""

    tokens = None
    """No token is chosen."""

    def __init__(
        self, logits: torch.Tensor, counts: abc.Sequence[int], weights: npt.NDArray[np.float32] | None = None
    ) -> None:
        """Start to add up the numbers of tokens.

        Args:
            logits: [W, D], in the model's dtype.
            counts: [B], how many consecutive tokens are added up each time; at least 1.
            weights: [W], how often each token counts. None: once.
        """
        sums = logits.float()
        if weights is not None:
            [of_tokens] = Upload(logits.device)(weights)
            sums = sums * of_tokens[:, None]
        if len(counts) < len(logits):
            [lengths] = Upload(logits.device)(np.array(counts, np.int64))
            # Otherwise it looks at the lengths, and waits for them.
            sums = torch.segment_reduce(sums, "sum", lengths=lengths, unsafe=True)
        self._copied = Download(sums)

    def result(self) -> Vectors:
        """Wait for them, and return [B, D]."""
        return self._copied.result()


class Pooling:
    """Implements ``LogitsTask`` for ``Pool``."""

    def __init__(self, model: LoadedModel, *, num_slots: int) -> None:
        """Start without requests."""
        self._model = model
        self._sums: dict[Sequence, Sum] = {}

    def begin(self, request: Request) -> list[Sequence]:
        """See ``LogitsTask``."""
        assert isinstance(request.task, Pool)
        wanted_from = {"last": None, "mean": 0, "weighted-mean": 0}[request.task.pooling]
        return [Sequence(request, list(request.prompt_ids), wanted_from=wanted_from)]

    def expect(self, work: abc.Sequence[Work]) -> None:
        """See ``LogitsTask``."""

    def start(self, work: abc.Sequence[Work], logits: torch.Tensor) -> PendingVectors:
        """See ``LogitsTask``."""
        is_weighted = any(_is_weighted(item.sequence) for item in work)
        weights = np.concatenate([_weights(item) for item in work]) if is_weighted else None
        return PendingVectors(logits, [item.num_wanted for item in work], weights)

    def take(self, work: abc.Sequence[Work], result: Vectors) -> Outcome:
        """See ``LogitsTask``."""
        non_finite, ended, vectors = [], [], []
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
                vectors.append(vector)
                self._sums.pop(row, None)
        generations = self._finished(ended, vectors) if ended else []
        return Outcome(ended=ended, non_finite=non_finite, generations=generations)

    def partial(self, sequence: Sequence, start: int) -> None:
        """See ``LogitsTask``. Nothing is generated."""

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
        sums.weight += float(_weights(item).sum())
        return sums.total / sums.weight

    def _finished(self, rows: abc.Sequence[Sequence], vectors: abc.Sequence[npt.NDArray[Any]]) -> list[Generation]:
        """Return the results of texts, given the pooled vector of each, [D]."""
        with torch.inference_mode():
            finished = self._model.after_pooling(torch.from_numpy(np.array(vectors, np.float32))).numpy()
        return [row.request.pooled(vector) for row, vector in zip(rows, finished, strict=True)]


def _is_weighted(sequence: Sequence) -> bool:
    task = sequence.request.task
    return isinstance(task, Pool) and task.pooling == "weighted-mean"


def _weights(item: Work) -> npt.NDArray[np.float32]:
    """Return how often each wanted token of a text counts: [num_wanted]."""
    if _is_weighted(item.sequence):
        return np.arange(item.start + 1, item.end + 1, dtype=np.float32)
    return np.ones(item.num_wanted, np.float32)
