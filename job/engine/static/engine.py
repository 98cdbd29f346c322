"""The simple engine: static batches through transformers' ``generate`` on the sharded module.

Works for every architecture that transformers generates with, and is the oracle and the fallback of faster engines.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteriaList

from job.config import EngineConfig, SamplingParams
from job.engine.failures import failed, not_finite
from job.engine.logits.constraint import Constraint
from job.engine.model.loading import LoadedModel
from job.engine.protocol import EndsText
from job.engine.static.batches import StaticBatches
from job.engine.static.limits import batch_limits
from job.engine.static.token_choice import Chooser, HasLeft, LeadingChooser
from job.launch.replica import Replica
from job.records import Generation, Grammar, Request


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """What the leader sends for one batch. Followers need no more than the prompts."""

    prompt_ids: list[list[int]]


class StaticEngine(StaticBatches):
    """Implements ``Engine`` on a loaded model."""

    def __init__(
        self,
        model: LoadedModel,
        params: SamplingParams,
        config: EngineConfig,
        replica: Replica,
        should_stop: Callable[[], bool] = lambda: False,
        ends_text: EndsText | None = None,
        grammar: Grammar | None = None,
    ) -> None:
        """Prepare generation.

        Args:
            should_stop: asked by the leader before every token; True makes ``step`` return with the batch undone.
            ends_text: finds the stop strings; needed by the leader alone.
            grammar: what every completion must be; for the leader alone.
        """
        max_rows, max_tokens = batch_limits(model, config, replica.device)
        super().__init__(replica, should_stop, max_rows=max_rows, max_tokens=max_tokens)
        self._model, self._params, self._ends_text = model, params, ends_text
        self._eos_token_ids = () if params.ignore_eos else model.eos_token_ids
        self._constraint = None if grammar is None else Constraint(grammar, self._eos_token_ids)
        # generate fills what is None in our configuration from the model's own (temperature, top_p, eos, ...).
        model.module.generation_config = GenerationConfig(pad_token_id=model.pad_token_id)

    def _room(self, request: Request) -> int:
        """Return the tokens of prompt and completion."""
        return len(request.prompt_ids) + self._params.max_new_tokens

    def _complete(self, batch: list[Request]) -> list[Generation]:
        """Generate a batch."""
        keys = [request.key for request in batch]
        chooser = LeadingChooser(
            self._replica,
            self._params,
            keys,
            self._eos_token_ids,
            self._should_stop,
            self._ends_text,
            self._constraint,
        )
        command = Batch(prompt_ids=[list(request.prompt_ids) for request in batch])
        self._replica.command(command)
        self._run(command, chooser)
        return self._take(batch, chooser)

    def _obey(self, command: Batch) -> None:
        """Generate what the leader chooses."""
        self._run(command, Chooser(self._replica))

    def _take(self, batch: list[Request], chooser: LeadingChooser) -> list[Generation]:
        """Return the rows that have ended; put the others back if the leader was asked to stop before they had."""
        rows = torch.stack(chooser.steps, dim=1).tolist() if chooser.steps else [[] for _ in batch]
        logprobs = torch.stack(chooser.logprobs, dim=1).tolist() if chooser.logprobs else None
        generations, unfinished = [], []
        for row, (request, ids, is_finite) in enumerate(zip(batch, rows, chooser.is_finite.tolist(), strict=True)):
            end = next((idx + 1 for idx, token in enumerate(ids) if token in self._eos_token_ids), None)
            end = chooser.stops.get(row, end)
            if not is_finite:
                generations.append(failed(request, "non_finite_logits", not_finite(self._model.dtype)))
            elif row in chooser.failures:
                generations.append(failed(request, "constraint_failed", chooser.failures[row]))
            elif end is None and chooser.has_left:
                unfinished.append(request)
            else:
                reason = "length" if end is None else "stop"
                row_logprobs = None if logprobs is None else logprobs[row][:end]
                generations.append(
                    Generation(request=request, token_ids=ids[:end], finish_reason=reason, logprobs=row_logprobs)
                )
        self._put_back(unfinished)
        self.num_computed_tokens += sum(len(g.request.prompt_ids) + len(g.token_ids) for g in generations)
        return generations

    def _run(self, batch: Batch, chooser: Chooser) -> None:
        def compute() -> str | None:
            self._call_generate(batch, chooser)
            return chooser.failure if isinstance(chooser, LeadingChooser) else None

        self._together(compute)

    def _call_generate(self, batch: Batch, chooser: Chooser) -> None:
        ids, chooser.mask = pad_left(batch.prompt_ids, self._model.pad_token_id, self._replica.device)
        config = GenerationConfig(
            max_new_tokens=self._params.max_new_tokens,
            do_sample=False,
            eos_token_id=list(self._eos_token_ids) or None,
            pad_token_id=self._model.pad_token_id,
            use_cache=True,
        )
        with torch.inference_mode():
            self._model.module.generate(
                input_ids=ids,
                attention_mask=chooser.mask,
                generation_config=config,
                logits_processor=LogitsProcessorList([chooser]),
                stopping_criteria=StoppingCriteriaList([HasLeft(chooser)]),
            )


def pad_left(
    prompt_ids: Sequence[Sequence[int]], pad_id: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return ids and attention mask, both [B, T] int64, prompts at the right."""
    length = max(map(len, prompt_ids))
    ids = torch.full((len(prompt_ids), length), pad_id, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompt_ids):
        ids[row, length - len(prompt) :] = torch.tensor(prompt)
        mask[row, length - len(prompt) :] = 1
    return ids.to(device), mask.to(device)
