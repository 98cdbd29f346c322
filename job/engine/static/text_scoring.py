"""Static batches of the windows of texts, to score them; see ``windows_of``.

Windows are padded at the end, which no earlier token sees. One that is too long for its logits to be there at once is
read in pieces.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from job.engine.failures import failed, not_finite
from job.engine.logits.text_scores import PendingTextScores
from job.engine.model.loading import LoadedModel
from job.engine.static.batch_task import Room, together
from job.engine.static.scoring import most_tokens, pad_right
from job.launch.replica import Replica
from job.records import Generation, Partial, Request
from job.tasks import ScoreText
from job.tasks.scored_text import Window, windows_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Windows:
    """What the leader sends: windows that are read together."""

    token_ids: list[list[int]]
    max_tokens: int
    """The most tokens whose logits may be there at once."""


class TextScoring:
    """Implements ``BatchTask`` for ``ScoreText``."""

    command_type: ClassVar[type] = Windows
    unfinished: ClassVar[tuple[Partial, ...]] = ()

    def __init__(
        self, model: LoadedModel, replica: Replica, should_stop: Callable[[], bool], *, max_rows: int, max_tokens: int
    ) -> None:
        """Prepare to score with a loaded model; each request brings its text."""
        self._model, self._replica = model, replica
        self.max_rows, self.max_tokens = max_rows, max(1, most_tokens(model, max_tokens))
        self.num_computed_tokens = 0

    def room(self, request: Request) -> Room:
        """See ``BatchTask``. The windows of a long text are in several batches, so the longest counts."""
        return Room(1, max(len(window.token_ids) for window in _windows_of(request)), 0)

    def compute(self, batch: list[Request]) -> list[Generation]:
        """See ``BatchTask``."""
        if self._model.module.config.is_encoder_decoder:
            detail = "scores need a causal model, and this is an encoder-decoder"
            return [failed(request, "engine_error", detail) for request in batch]
        logprobs = [np.full(len(_task_of(request).text_ids), np.nan) for request in batch]
        for group in self._groups(
            [(idx, window) for idx, request in enumerate(batch) for window in _windows_of(request)]
        ):
            windows = [window for _, window in group]
            texts = [_task_of(batch[idx]).text_ids[window.begin : window.end] for idx, window in group]
            for (idx, window), values in zip(group, self._scores(windows, texts), strict=True):
                logprobs[idx][window.begin : window.end] = values
        return [
            request.scored(values.tolist())
            if np.isfinite(values).all()
            else failed(request, "non_finite_logits", not_finite(self._model.dtype))
            for request, values in zip(batch, logprobs, strict=True)
        ]

    def obey(self, command: Windows) -> None:
        """See ``BatchTask``."""

        def compute() -> None:
            with torch.inference_mode():
                for _ in self._logits(command):
                    pass

        together(self._replica, compute)

    def _groups(self, windows: Sequence[tuple[int, Window]]) -> Iterator[list[tuple[int, Window]]]:
        """Yield windows that are read together, the longest first: as many as the limits allow, but at least one."""
        group: list[tuple[int, Window]] = []
        for item in sorted(windows, key=lambda item: -len(item[1].token_ids)):
            width = len((group or [item])[0][1].token_ids)
            if group and (len(group) == self.max_rows or (len(group) + 1) * width > self.max_tokens):
                yield group
                group = []
            group.append(item)
        yield group

    def _scores(self, windows: Sequence[Window], texts: Sequence[Sequence[int]]) -> list[list[float]]:
        """Return the log probabilities of what each window scores."""
        command = Windows(token_ids=[list(window.token_ids) for window in windows], max_tokens=self.max_tokens)
        self._replica.command(command)
        scores: list[list[float]] = [[] for _ in windows]

        def compute() -> None:
            with torch.inference_mode():
                for row, start, logits in self._logits(command):
                    wanted = logits[max(0, windows[row].first_wanted - start) :]
                    token_ids = texts[row][len(scores[row]) :][: len(wanted)]
                    if token_ids:
                        scores[row] += PendingTextScores(wanted, token_ids).result().tolist()

        together(self._replica, compute)
        self.num_computed_tokens += sum(map(len, command.token_ids))
        return scores

    def _logits(self, windows: Windows) -> Iterator[tuple[int, int, torch.Tensor]]:
        """Yield logits [N, V] of consecutive tokens of a row, with the row and the index of the first of them."""
        module, device = self._model.module, self._replica.device
        longest = max(map(len, windows.token_ids))
        if len(windows.token_ids) == 1 and longest > windows.max_tokens:
            yield from self._in_pieces(windows.token_ids[0], windows.max_tokens)
            return
        ids, is_real = pad_right(windows.token_ids, self._model.pad_token_id, device)
        output = module(input_ids=ids, attention_mask=is_real, use_cache=False)
        for row, token_ids in enumerate(windows.token_ids):
            yield row, 0, output.logits[row, : len(token_ids)]

    def _in_pieces(self, token_ids: Sequence[int], max_tokens: int) -> Iterator[tuple[int, int, torch.Tensor]]:
        """Yield the logits of one row piece by piece; all at once if the model has no cache between pieces."""
        ids, past, start = torch.tensor([token_ids], device=self._replica.device), None, 0
        while start < len(token_ids):
            piece = ids[:, start : start + max_tokens]
            output = self._model.module(input_ids=piece, past_key_values=past, use_cache=True)
            past = getattr(output, "past_key_values", None)
            if past is None:
                yield 0, 0, self._model.module(input_ids=ids).logits[0]
                return
            yield 0, start, output.logits[0]
            start += max_tokens


def _task_of(request: Request) -> ScoreText:
    assert isinstance(request.task, ScoreText)
    return request.task


def _windows_of(request: Request) -> Iterator[Window]:
    return windows_of(request.prompt_ids, _task_of(request))
