"""Static batches of completions, computed by transformers' ``generate``."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from transformers import DynamicCache, EncoderDecoderCache, GenerationConfig, LogitsProcessorList, StoppingCriteriaList

from job.engine.failures import failed, not_finite
from job.engine.logits.constraint import Constraints
from job.engine.logits.endings import generation_of
from job.engine.model.decoder import begin_ids
from job.engine.model.loading import LoadedModel
from job.engine.static.batch_task import Room, together
from job.engine.static.scoring import pad_right
from job.engine.static.token_choice import Chooser, HasLeft, LeadingChooser
from job.launch.replica import Replica
from job.records import Generation, Partial, Request
from job.tasks import Generate


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """What the leader sends for a batch. Followers use the tokens that the leader chooses, so they need no tasks."""

    prompt_ids: list[list[int]]
    """And what an earlier process has generated after them."""
    decoder_ids: list[list[int]]
    """What the answers of an encoder-decoder follow, of one length. Empty for other models."""
    max_new_tokens: int
    """The limit of the row that may go on the longest."""


class Generating:
    """Implements ``BatchTask`` for ``Generate``."""

    command_type: ClassVar[type] = Batch

    def __init__(
        self, model: LoadedModel, replica: Replica, should_stop: Callable[[], bool], *, max_rows: int, max_tokens: int
    ) -> None:
        """Prepare a loaded model for generation.

        Args:
            should_stop: called by the leader before every token.
        """
        self._model, self._replica, self._should_stop = model, replica, should_stop
        self.max_rows, self.max_tokens, self.num_computed_tokens = max_rows, max_tokens, 0
        self.unfinished: list[Partial] = []
        self._constraints = Constraints()
        # generate takes what our configuration leaves at None from the model's (temperature, eos, ...): empty that one.
        model.module.generation_config = GenerationConfig(pad_token_id=model.pad_token_id)

    def room(self, request: Request) -> Room:
        """See ``BatchTask``."""
        num_begin, num_begun = len(begin_ids(self._model.decoder, request.decoder_ids)), len(self._begun_ids(request))
        num_left = _task_of(request).params.max_new_tokens - num_begun
        return Room(1, len(request.prompt_ids) + num_begun, num_begin + num_left)

    def compute(self, batch: list[Request]) -> list[Generation]:
        """See ``BatchTask``. Leaves out rows that have not ended when the leader is asked to stop."""
        command = Batch(
            prompt_ids=[[*request.prompt_ids, *self._begun_ids(request)] for request in batch],
            decoder_ids=[
                list(ids) for request in batch if (ids := begin_ids(self._model.decoder, request.decoder_ids))
            ],
            max_new_tokens=max(
                _task_of(request).params.max_new_tokens - len(self._begun_ids(request)) for request in batch
            ),
        )
        self.unfinished = []
        chooser = LeadingChooser(self._replica, self._model, batch, self._constraints, self._should_stop)
        self._replica.command(command)
        self._run(command, chooser)
        generations = [generation for row in range(len(batch)) for generation in self._generation(chooser, row)]
        if self._model.decoder is None:
            self.unfinished = chooser.unfinished()
        self.num_computed_tokens += sum(len(g.request.prompt_ids) + len(g.token_ids) for g in generations)
        return generations

    def obey(self, command: Batch) -> None:
        """See ``BatchTask``."""
        self._run(command, Chooser(self._replica))

    def _begun_ids(self, request: Request) -> Sequence[int]:
        """Return what an earlier process has generated for a request. An encoder-decoder begins again: the batch would
        have decoders of different lengths."""
        return () if request.begun is None or self._model.decoder is not None else request.begun.token_ids

    def _generation(self, chooser: LeadingChooser, row: int) -> list[Generation]:
        """Return the result of a row, if it has ended."""
        request, end = chooser.requests[row], chooser.ends.get(row)
        if row in chooser.non_finite:
            return [failed(request, "non_finite_logits", not_finite(self._model.dtype))]
        if end is None:
            return []
        tokens = chooser.rows[row].completion_ids
        return [generation_of(request, tokens, end, chooser.logprobs[row], chooser.tops[row])]

    def _run(self, batch: Batch, chooser: Chooser) -> None:
        def compute() -> str | None:
            self._call_generate(batch, chooser)
            return chooser.failure

        together(self._replica, compute)

    def _call_generate(self, batch: Batch, chooser: Chooser) -> None:
        config = GenerationConfig(
            max_new_tokens=batch.max_new_tokens,
            do_sample=False,
            eos_token_id=None,  # rows may differ in what ends them: the leader ends the batch after its last row
            pad_token_id=self._model.pad_token_id,
            decoder_start_token_id=batch.decoder_ids[0][0] if batch.decoder_ids else None,
            use_cache=True,
        )
        with torch.inference_mode():
            self._model.module.generate(
                **self._inputs(batch),
                generation_config=config,
                logits_processor=LogitsProcessorList([chooser]),
                stopping_criteria=StoppingCriteriaList([HasLeft(chooser)]),
            )

    def _inputs(self, batch: Batch) -> dict[str, Any]:
        """Return what ``generate`` gets of a batch."""
        pad_id, device = self._model.pad_token_id, self._replica.device
        if not batch.decoder_ids:
            ids, mask = pad_left(batch.prompt_ids, pad_id, device)
            return {"input_ids": ids, "attention_mask": mask}
        # On the right: learned positions count padding, so that on the left it would change the answers of BART.
        ids, mask = pad_right(batch.prompt_ids, pad_id, device)
        return {
            "input_ids": ids,
            "attention_mask": mask,
            "decoder_input_ids": torch.tensor(batch.decoder_ids, device=device),
            # The one of transformers has as many layers as the encoder, which may be fewer than the decoder's.
            "past_key_values": EncoderDecoderCache(DynamicCache(), DynamicCache()),
        }


def _task_of(request: Request) -> Generate:
    assert isinstance(request.task, Generate)
    return request.task


def pad_left(
    prompt_ids: Sequence[Sequence[int]], pad_id: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return ids and attention mask, both [B, T] int64, with the prompts on the right."""
    length = max(map(len, prompt_ids))
    ids = torch.full((len(prompt_ids), length), pad_id, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompt_ids):
        ids[row, length - len(prompt) :] = torch.tensor(prompt)
        mask[row, length - len(prompt) :] = 1
    return ids.to(device), mask.to(device)
