"""Scoring of texts: a step's logits become the log probabilities of tokens that are there already.

The windows of a text are sequences of their own. The scheduler limits how many tokens of a step are scored, so a long
text never needs the logits of all its tokens at once.
"""

from collections import abc
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from job.engine.logits.text_scores import PendingTextScores
from job.engine.model.loading import LoadedModel
from job.engine.paged.schedule.sequences import Sequence
from job.engine.paged.schedule.work import Work
from job.engine.paged.tasks.logits_task import Outcome
from job.records import Generation, Request, SampleKey
from job.tasks import ScoreText
from job.tasks.scored_text import Window, windows_of

Floats = npt.NDArray[np.float64]


@dataclass(slots=True)
class ScoredText:
    """A request, and the log probabilities of its text so far. Changes until no window is left."""

    task: ScoreText
    logprobs: Floats
    num_windows_left: int
    failure: Generation | None = None


class TextScoring:
    """Implements ``LogitsTask`` for ``ScoreText``."""

    def __init__(self, model: LoadedModel, *, num_slots: int) -> None:
        """Start without requests; each brings its text."""
        self._texts: dict[SampleKey, ScoredText] = {}
        self._windows: dict[Sequence, Window] = {}

    def begin(self, request: Request) -> list[Sequence]:
        """See ``LogitsTask``."""
        task = request.task
        assert isinstance(task, ScoreText)
        windows = list(windows_of(request.prompt_ids, task))
        self._texts[request.key] = ScoredText(task, np.full(len(task.text_ids), np.nan), len(windows))
        rows = []
        for window in windows:
            num_forced = len(window.token_ids) - len(request.prompt_ids)
            row = Sequence(request, list(window.token_ids), num_forced=num_forced, wanted_from=window.first_wanted)
            self._windows[row] = window
            rows.append(row)
        return rows

    def expect(self, work: abc.Sequence[Work]) -> None:
        """See ``LogitsTask``."""

    def start(self, work: abc.Sequence[Work], logits: torch.Tensor) -> PendingTextScores:
        """See ``LogitsTask``."""
        return PendingTextScores(
            logits, [token for item in work for token in self._text_of(item).task.text_ids[self._places(item)]]
        )

    def take(self, work: abc.Sequence[Work], result: Floats) -> Outcome:
        """See ``LogitsTask``."""
        non_finite, ended, begin = [], [], 0
        for item in work:
            logprobs = result[begin : begin + item.num_wanted]
            begin += item.num_wanted
            self._text_of(item).logprobs[self._places(item)] = logprobs
            if not np.isfinite(logprobs).all():
                non_finite.append(item.sequence)
            elif item.end == len(item.sequence.token_ids):
                ended.append(item.sequence)
        generations = [generation for row in ended for generation in self._leave(row)]
        return Outcome(ended=ended, non_finite=non_finite, generations=generations)

    def partial(self, sequence: Sequence, start: int) -> None:
        """See ``LogitsTask``. Nothing is generated."""

    def fail(self, sequence: Sequence, failure: Generation) -> list[Generation]:
        """See ``LogitsTask``. The request is finished when its other windows are."""
        self._texts[sequence.request.key].failure = failure
        return self._leave(sequence)

    def _text_of(self, item: Work) -> ScoredText:
        return self._texts[item.sequence.request.key]

    def _places(self, item: Work) -> slice:
        """Return which tokens of the text a step scores."""
        window = self._windows[item.sequence]
        end = window.end - (len(window.token_ids) - item.end)
        return slice(end - item.num_wanted, end)

    def _leave(self, row: Sequence) -> list[Generation]:
        """Count one window less, and return the result of its request if it was the last."""
        del self._windows[row]
        text = self._texts[row.request.key]
        text.num_windows_left -= 1
        if text.num_windows_left:
            return []
        del self._texts[row.request.key]
        return [text.failure or row.request.scored(text.logprobs.tolist())]
