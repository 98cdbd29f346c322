"""The simple engine: static batches through transformers' ``generate`` on the sharded module.

Works for every architecture that transformers generates with, and is the oracle and the fallback of faster engines.
A batch lasts as long as its longest row, so pending requests are sorted by length, longest first: rows of a batch are
alike, and a batch that does not fit into memory shows at once and not at four in the morning.

The leader samples. On every rank ``generate`` runs greedily on logits in which a logits processor has left one token:
the one that the leader chose and broadcast. So ranks cannot drift apart, whatever their logits' last bits are.

Letters: B rows of the batch, T padded length, V vocabulary.
"""

import contextlib
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, StoppingCriteria, StoppingCriteriaList

from job.config import EngineConfig, SamplingParams
from job.distributed import Replica
from job.engine.loading import LoadedModel
from job.engine.sampling import choose_tokens, penalize_repetition
from job.errors import JobError
from job.records import Generation, Request, RowError

PENDING_BATCHES = 16
"""So many batches' worth of requests are sorted together: enough to find rows of like length."""

CPU_BATCH_ROWS = 64
CPU_BATCH_TOKENS = 64 * 1024
MEMORY_SHARE = 0.4
"""Of the memory free after loading, for the KV cache: ``generate`` grows it by copying, so two are alive at times."""

INTERRUPT = -1
"""Sent in place of the tokens of a step: the leader leaves the batch unfinished."""

KEEP_ALIVE = "keep alive"


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """What the leader sends for one batch. Followers need no more than the prompts."""

    prompt_ids: list[list[int]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Closed:
    """The leader's last command."""

    exit_code: int


class OutOfMemory(Exception):
    """The batch did not fit; a smaller one may."""


class BatchFailed(Exception):
    """Every rank met an error at the same place; the engine is intact, so smaller batches can find the row."""


class StaticEngine:
    """Implements ``Engine`` on a loaded model."""

    def __init__(
        self,
        model: LoadedModel,
        params: SamplingParams,
        config: EngineConfig,
        replica: Replica,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> None:
        """Prepare generation.

        Args:
            should_stop: asked by the leader before every token; True makes ``step`` return with the batch undone.
        """
        self._model, self._params, self._replica, self._should_stop = model, params, replica, should_stop
        self._max_rows, self._max_tokens = _batch_limits(model, config, replica)
        self._pending: deque[Request] = deque()
        self._is_sorted = True
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

    def submit(self, request: Request) -> None:
        """See ``Engine``."""
        self._pending.append(request)
        self._is_sorted = False

    def step(self) -> list[Generation]:
        """Generate one batch of the longest pending requests."""
        if not self._pending or self._should_stop():
            return []
        batch = self._next_batch()
        try:
            generations = self._generate(batch)
        except OutOfMemory:
            return self._split(batch, "out of memory")
        except BatchFailed as error:
            return self._split(batch, str(error))
        if generations is None:  # interrupted: the requests stay
            self._pending.extendleft(reversed(batch))
            return []
        return generations

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
                    self._run(command, _Follower(self._replica))

    def _next_batch(self) -> list[Request]:
        """Take the longest requests that fit the budget; at least one, whatever its size."""
        if not self._is_sorted:
            self._pending = deque(sorted(self._pending, key=lambda request: -len(request.prompt_ids)))
            self._is_sorted = True
        room_per_row = len(self._pending[0].prompt_ids) + self._params.max_new_tokens
        num_rows = max(1, min(self._max_rows, self._max_tokens // room_per_row, len(self._pending)))
        return [self._pending.popleft() for _ in range(num_rows)]

    def _split(self, batch: list[Request], reason: str) -> list[Generation]:
        """Put a failed batch back to be done in halves; a single row that fails alone is an error row.

        Memory that ran out once will run out again, so later batches are kept to the size that is left.
        """
        if len(batch) == 1:
            kind = "out_of_memory" if reason == "out of memory" else "engine_error"
            error = RowError(kind, f"{len(batch[0].prompt_ids)} prompt tokens: {reason}")
            return [Generation(request=batch[0], token_ids=[], finish_reason=None, error=error)]
        half = len(batch) // 2
        if reason == "out of memory":
            self._max_tokens = half * (len(batch[0].prompt_ids) + self._params.max_new_tokens)
            self._pending.extendleft(reversed(batch))
            return []
        return [generation for part in (batch[:half], batch[half:]) for generation in self._retry(part)]

    def _retry(self, batch: list[Request]) -> list[Generation]:
        try:
            generations = self._generate(batch)
        except OutOfMemory:
            return self._split(batch, "out of memory")
        except BatchFailed as error:
            return self._split(batch, str(error))
        if generations is None:
            self._pending.extendleft(reversed(batch))
            return []
        return generations

    def _generate(self, batch: list[Request]) -> list[Generation] | None:
        """Run a batch on all ranks. None if it was interrupted.

        Raises:
            OutOfMemory, BatchFailed: all ranks agree that it failed.
        """
        command = Batch(prompt_ids=[list(request.prompt_ids) for request in batch])
        self._replica.command(command)
        leader = _Leader(self._replica, self._params, batch, self._model, self._should_stop)
        output = self._run(command, leader)
        if leader.interrupted:
            return None
        generations = [
            self._to_generation(request, ids, is_finite)
            for request, ids, is_finite in zip(batch, output, leader.is_finite.tolist(), strict=True)
        ]
        self.num_computed_tokens += sum(len(g.request.prompt_ids) + len(g.token_ids) for g in generations)
        return generations

    def _to_generation(self, request: Request, ids: list[int], is_finite: bool) -> Generation:
        if not is_finite:
            detail = f"the model's logits were not finite numbers in {self._model.dtype}"
            error = RowError("non_finite_logits", f"{detail}; --dtype bfloat16 or float32 has more range")
            return Generation(request=request, token_ids=[], finish_reason=None, error=error)
        eos = set() if self._params.ignore_eos else set(self._model.eos_token_ids)
        end = next((idx for idx, token in enumerate(ids) if token in eos), None)
        if end is None:
            return Generation(request=request, token_ids=ids[: self._params.max_new_tokens], finish_reason="length")
        return Generation(request=request, token_ids=ids[: end + 1], finish_reason="stop")

    def _run(self, batch: Batch, chooser: "_Leader | _Follower") -> list[list[int]]:
        """Generate on this rank, then hear how it went on the others. Returns the new ids, padded, by row."""
        failure, output = None, []
        try:
            output = self._call_generate(batch, chooser)
        except torch.OutOfMemoryError:
            failure = "out of memory"
        except (RuntimeError, ValueError, IndexError) as error:
            failure = _describe(error)
        # Outside the except block: the traceback held the tensors of the failed forward pass alive.
        statuses = [status for status in self._replica.gather_status(failure) if status is not None]
        if not statuses:
            return output
        if self._replica.device.type == "cuda":
            torch.cuda.empty_cache()
        if "out of memory" in statuses:
            raise OutOfMemory
        raise BatchFailed(statuses[0])

    def _call_generate(self, batch: Batch, chooser: "_Leader | _Follower") -> list[list[int]]:
        ids, mask = pad_left(batch.prompt_ids, self._model.pad_token_id, self._replica.device)
        chooser.mask = mask
        config = GenerationConfig(
            max_new_tokens=self._params.max_new_tokens,
            do_sample=False,
            eos_token_id=None if self._params.ignore_eos else list(self._model.eos_token_ids) or None,
            pad_token_id=self._model.pad_token_id,
            use_cache=True,
        )
        with torch.inference_mode():
            output = self._model.module.generate(
                input_ids=ids,
                attention_mask=mask,
                generation_config=config,
                logits_processor=LogitsProcessorList([chooser]),
                stopping_criteria=StoppingCriteriaList([_Interrupted(chooser)]),
            )
        new_ids: list[list[int]] = output[:, ids.shape[1] :].tolist()
        return new_ids


class _Chooser(LogitsProcessor):  # type: ignore[misc]
    """Leaves one token per row possible: the one the leader chose."""

    def __init__(self, replica: Replica) -> None:
        self._replica = replica
        self.mask: torch.Tensor  # [B, T] int64, of the prompts
        self.interrupted = False

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Choose. Shapes: input_ids [B, T + position] int64, scores [B, V] float32."""
        tokens = self._replica.broadcast_tensor(self._tokens(input_ids, scores))
        if int(tokens[0]) == INTERRUPT:
            self.interrupted = True
            tokens = torch.zeros_like(tokens)
        return torch.full_like(scores, -torch.inf).scatter_(-1, tokens[:, None], 0.0)

    def _tokens(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError


class _Leader(_Chooser):
    """Samples the tokens of a batch."""

    def __init__(
        self,
        replica: Replica,
        params: SamplingParams,
        batch: Sequence[Request],
        model: LoadedModel,
        should_stop: Callable[[], bool],
    ) -> None:
        super().__init__(replica)
        self._params, self._should_stop = params, should_stop
        self._keys = [request.key for request in batch]
        self._end_token = model.eos_token_ids[0] if model.eos_token_ids else model.pad_token_id
        self.is_finite = torch.ones(len(batch), dtype=torch.bool, device=replica.device)

    def _tokens(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        if self._should_stop():
            return torch.full((len(scores),), INTERRUPT, dtype=torch.int64, device=scores.device)
        position = input_ids.shape[1] - self.mask.shape[1]
        self.is_finite &= scores.amax(dim=-1).isfinite()  # a NaN anywhere in a row makes its maximum NaN
        logits = torch.where(self.is_finite[:, None], scores, 0.0)
        if self._params.repetition_penalty != 1:
            new = self.mask.new_ones(len(scores), position)
            seen_mask = torch.cat([self.mask, new], dim=1).bool()
            logits = penalize_repetition(logits, input_ids, seen_mask, self._params.repetition_penalty)
        tokens = choose_tokens(logits, self._params, self._keys, position)
        return torch.where(self.is_finite, tokens, self._end_token)


class _Follower(_Chooser):
    """Takes the leader's tokens."""

    def _tokens(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        return torch.empty(len(scores), dtype=torch.int64, device=scores.device)


class _Interrupted(StoppingCriteria):  # type: ignore[misc]
    """Ends a batch that the leader has left."""

    def __init__(self, chooser: _Chooser) -> None:
        self._chooser = chooser

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        """Return [B] bool, True for rows that are done."""
        return torch.full((len(input_ids),), self._chooser.interrupted, dtype=torch.bool, device=input_ids.device)


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


def _describe(error: Exception) -> str:
    """Return what failed, in one line, or raise: a broken device is not the row's fault.

    Raises:
        JobError: CUDA reported an error, or a connection broke: nothing after it can be trusted.
    """
    text = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    if "can't allocate memory" in text or "not enough memory" in text:  # torch's CPU allocator has no class for it
        return "out of memory"
    if (
        isinstance(error, torch.AcceleratorError)
        or "CUDA error" in text
        or isinstance(error, torch.distributed.DistError)
    ):
        raise JobError(f"The device or the connection to another process failed: {text}") from error
    if any(word in text for word in ("Connection", "gloo", "NCCL", "Timed out")):
        raise JobError(f"The connection to another process of this replica broke: {text}") from error
    return f"{type(error).__name__}: {text}"


def _batch_limits(model: LoadedModel, config: EngineConfig, replica: Replica) -> tuple[int, int]:
    """Return how many rows and how many tokens (padding and completion included) a batch may have."""
    if replica.device.type == "cpu":
        return config.max_batch_rows or CPU_BATCH_ROWS, config.max_batch_tokens or CPU_BATCH_TOKENS
    if config.max_batch_tokens is None:
        free_bytes, _ = torch.cuda.mem_get_info(replica.device)
        max_tokens = int(free_bytes * MEMORY_SHARE) // _kv_bytes_per_token(model)
    else:
        max_tokens = config.max_batch_tokens
    return config.max_batch_rows or 512, max(1, max_tokens)


def _kv_bytes_per_token(model: LoadedModel) -> int:
    """Return the KV cache's size per token on one rank; an upper bound, as if the heads were not cut."""
    text = model.module.config.get_text_config()
    head_dim = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    num_heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    return int(2 * text.num_hidden_layers * num_heads * head_dim * model.dtype.itemsize)
