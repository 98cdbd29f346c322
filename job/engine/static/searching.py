"""Static batches of completions that are searched for with beams."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch

from job.engine.failures import failed, not_finite
from job.engine.logits.endings import LENGTH, NOTHING_LEFT, STOP, generation_of
from job.engine.model.decoder import begin_ids
from job.engine.model.loading import LoadedModel
from job.engine.static.batch_task import Room, together
from job.engine.static.beam_choice import Choice, LeadingChoice, task_of
from job.engine.static.beam_decoder import BeamDecoder
from job.engine.static.scoring import pad_right
from job.launch.replica import Replica
from job.records import Generation, Partial, Request


@dataclass(frozen=True, slots=True, kw_only=True)
class Sources:
    """What the leader sends for a batch."""

    prompt_ids: list[list[int]]
    decoder_ids: list[list[int]]
    """What the decoder begins with, of one length."""
    num_beams: int


class Searching:
    """Implements ``BatchTask`` for ``BeamSearch``."""

    command_type: ClassVar[type] = Sources
    unfinished: ClassVar[tuple[Partial, ...]] = ()

    def __init__(
        self, model: LoadedModel, replica: Replica, should_stop: Callable[[], bool], *, max_rows: int, max_tokens: int
    ) -> None:
        """Search with a loaded model.

        Args:
            should_stop: called by the leader before every token.
        """
        self._model, self._replica, self._should_stop = model, replica, should_stop
        self.max_rows, self.max_tokens, self.num_computed_tokens = max_rows, max_tokens, 0

    def room(self, request: Request) -> Room:
        """See ``BatchTask``. Each beam is a row, with keys and values of the source and of its own."""
        task, num_begin = task_of(request), len(begin_ids(self._model.decoder, request.decoder_ids))
        return Room(task.num_beams, len(request.prompt_ids), num_begin + task.params.max_new_tokens)

    def compute(self, batch: list[Request]) -> list[Generation]:
        """See ``BatchTask``. Leaves out rows that have not ended when the leader is asked to stop."""
        command = Sources(
            prompt_ids=[list(request.prompt_ids) for request in batch],
            decoder_ids=[list(begin_ids(self._model.decoder, request.decoder_ids)) for request in batch],
            num_beams=task_of(batch[0]).num_beams,
        )
        choice = LeadingChoice(self._replica, self._model, batch, self._should_stop)
        self._replica.command(command)
        self._run(command, choice)
        generations = [generation for row in range(len(batch)) for generation in self._generation(choice, row)]
        self.num_computed_tokens += sum(len(g.request.prompt_ids) + len(g.token_ids) for g in generations)
        return generations

    def obey(self, command: Sources) -> None:
        """See ``BatchTask``."""
        self._run(command, Choice(self._replica, len(command.prompt_ids), command.num_beams))

    def _generation(self, choice: LeadingChoice, row: int) -> list[Generation]:
        """Return the result of a row, if nothing better can come."""
        request, search = choice.requests[row], choice.searches[row]
        if row in choice.non_finite:
            return [failed(request, "non_finite_logits", not_finite(self._model.dtype))]
        if search.is_open:
            return []
        if not search.finished:
            return [generation_of(request, [], NOTHING_LEFT, [], bytearray())]
        best = search.finished[0]
        return [generation_of(request, best.token_ids, LENGTH if best.is_cut else STOP, [], bytearray())]

    def _run(self, batch: Sources, choice: Choice) -> None:
        def compute() -> str | None:
            with torch.inference_mode():
                self._decode(batch, choice)
            return choice.failure

        together(self._replica, compute)

    def _decode(self, batch: Sources, choice: Choice) -> None:
        ids, mask = pad_right(batch.prompt_ids, self._model.pad_token_id, self._replica.device)
        decoder = BeamDecoder(self._model.module, ids, mask)
        following = choice(decoder.logits(batch.decoder_ids))
        while following is not None:
            decoder.keep(following.parents)
            following = choice(decoder.logits([[token] for token in following.tokens]))
