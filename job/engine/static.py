"""The simple engine: static batches through transformers' ``generate`` on the sharded module.

Works for every architecture that transformers generates with, and is the oracle and the fallback of faster engines.
A batch lasts as long as its longest row, so pending requests are sorted by length, longest first: rows of a batch are
alike, and a batch that does not fit into memory shows at once and not at four in the morning.
"""

import contextlib
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteriaList

from job.config import EngineConfig, SamplingParams
from job.distributed import Replica
from job.engine.batch_limits import batch_limits
from job.engine.choosers import Chooser, HasLeft, LeadingChooser
from job.engine.constraint import Constraint
from job.engine.failures import OUT_OF_MEMORY, BatchFailed, OutOfMemory, describe_failure, failed, not_finite
from job.engine.loading import LoadedModel
from job.engine.protocol import EndsText
from job.errors import JobError
from job.records import Generation, Grammar, Request

PENDING_BATCHES = 16
"""So many batches' worth of requests are sorted together: enough to find rows of like length."""

KEEP_ALIVE = "keep alive"


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """What the leader sends for one batch. Followers need no more than the prompts."""

    prompt_ids: list[list[int]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Closed:
    """The leader's last command."""

    exit_code: int


class StaticEngine:
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
        self._model, self._params, self._replica, self._should_stop = model, params, replica, should_stop
        self._ends_text = ends_text
        self._eos_token_ids = () if params.ignore_eos else model.eos_token_ids
        self._constraint = None if grammar is None else Constraint(grammar, self._eos_token_ids)
        self._max_rows, self._max_tokens = batch_limits(model, config, replica.device)
        self._pending: deque[Request] = deque()
        self._is_sorted = True
        self._batch: list[Request] = []
        self.num_computed_tokens = 0
        # generate fills what is None in our configuration from the model's own (temperature, top_p, eos, ...).
        model.module.generation_config = GenerationConfig(pad_token_id=model.pad_token_id)

    @property
    def num_pending(self) -> int:
        """See ``Engine``."""
        return len(self._pending)

    @property
    def min_pending(self) -> int:
        """See ``Engine``."""
        return self._max_rows

    @property
    def max_pending(self) -> int:
        """See ``Engine``."""
        return PENDING_BATCHES * self._max_rows

    @property
    def at_work(self) -> list[Request]:
        """See ``Engine``."""
        return self._batch

    def submit(self, request: Request) -> None:
        """See ``Engine``."""
        self._pending.append(request)
        self._is_sorted = False

    def step(self) -> list[Generation]:
        """Generate one batch of the longest pending requests."""
        if not self._pending or self._should_stop():
            return []
        self._batch = self._next_batch()
        return self._attempt(self._batch)

    def keep_alive(self) -> None:
        """See ``Engine``."""
        self._replica.command(KEEP_ALIVE)

    def close(self, exit_code: int) -> None:
        """See ``Engine``."""
        self._replica.command(Closed(exit_code=exit_code))

    def follow(self) -> int:
        """See ``Engine``."""
        while True:
            command = self._replica.command()
            if isinstance(command, Closed):
                return command.exit_code
            if isinstance(command, Batch):
                # A failure that all ranks agree on: the leader sends what it decides to do about it.
                with contextlib.suppress(OutOfMemory, BatchFailed):
                    self._run(command, Chooser(self._replica))

    def _next_batch(self) -> list[Request]:
        """Take the longest requests that fit the budget; at least one, whatever its size."""
        if not self._is_sorted:
            self._pending = deque(sorted(self._pending, key=lambda request: -len(request.prompt_ids)))
            self._is_sorted = True
        room_per_row = len(self._pending[0].prompt_ids) + self._params.max_new_tokens
        num_rows = max(1, min(self._max_rows, self._max_tokens // room_per_row, len(self._pending)))
        return [self._pending.popleft() for _ in range(num_rows)]

    def _put_back(self, requests: Sequence[Request]) -> None:
        self._pending.extend(requests)
        self._is_sorted = False

    def _attempt(self, batch: list[Request]) -> list[Generation]:
        """Generate a batch, or what can be generated of it."""
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
        try:
            self._run(command, chooser)
        except OutOfMemory:
            return self._shrink(batch)
        except BatchFailed as error:
            return self._bisect(batch, str(error))
        return self._take(batch, chooser)

    def _shrink(self, batch: list[Request]) -> list[Generation]:
        """Keep all later batches to half of this one's tokens: memory that ran out once will run out again."""
        if len(batch) == 1:
            return [failed(batch[0], "out_of_memory", OUT_OF_MEMORY)]
        self._max_tokens = len(batch) // 2 * (len(batch[0].prompt_ids) + self._params.max_new_tokens)
        self._put_back(batch)
        return []

    def _bisect(self, batch: list[Request], reason: str) -> list[Generation]:
        """Find the row on which the model fails: alone, it becomes an error row."""
        if len(batch) == 1:
            return [failed(batch[0], "engine_error", reason)]
        half = len(batch) // 2
        return [generation for part in (batch[:half], batch[half:]) for generation in self._attempt(part)]

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
        """Generate on this rank, then hear how it went on the others.

        Raises:
            OutOfMemory, BatchFailed: all ranks agree that it failed.
        """
        failure = None
        try:
            self._call_generate(batch, chooser)
        except JobError:
            raise
        except Exception as error:  # whatever the model's code raises on these rows
            failure = describe_failure(error)
        # Outside the except block: the traceback held the tensors of the failed forward pass alive.
        if isinstance(chooser, LeadingChooser):
            failure = failure or chooser.failure
        statuses = [status for status in self._replica.gather_status(failure) if status is not None]
        if not statuses:
            return
        if self._replica.device.type == "cuda":
            torch.cuda.empty_cache()
        if OUT_OF_MEMORY in statuses:
            raise OutOfMemory
        raise BatchFailed(statuses[0])

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
