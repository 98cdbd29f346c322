"""Static batches of texts, of which a vector each is wanted. Texts are padded at the end, and padding is masked."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch

from job.engine.failures import failed, not_finite
from job.engine.model.heads import TextHead
from job.engine.model.loading import LoadedModel
from job.engine.static.batch_task import Room, together
from job.engine.static.scoring import pad_right
from job.launch.replica import Replica
from job.records import Generation, Partial, Request
from job.tasks import Pool


@dataclass(frozen=True, slots=True, kw_only=True)
class PooledTexts:
    """What the leader sends for one batch."""

    token_ids: list[list[int]]
    second_from: list[int | None]
    """For each, the index of the first token of the second text of a pair."""


class Pooling:
    """Implements ``BatchTask`` for ``Pool``."""

    command_type: ClassVar[type] = PooledTexts
    unfinished: ClassVar[tuple[Partial, ...]] = ()

    def __init__(
        self, model: LoadedModel, replica: Replica, should_stop: Callable[[], bool], *, max_rows: int, max_tokens: int
    ) -> None:
        """Prepare to pool what a loaded model gives."""
        self._model, self._replica = model, replica
        self.max_rows, self.max_tokens, self.num_computed_tokens = max_rows, max_tokens, 0

    def room(self, request: Request) -> Room:
        """See ``BatchTask``."""
        return Room(1, len(request.prompt_ids), 0)

    def compute(self, batch: list[Request]) -> list[Generation]:
        """See ``BatchTask``."""
        command = PooledTexts(
            token_ids=[list(request.prompt_ids) for request in batch],
            second_from=[_task_of(request).second_from for request in batch],
        )
        self._replica.command(command)
        found: list[torch.Tensor] = []
        together(self._replica, lambda: found.append(self._pooled(command, batch)))
        self.num_computed_tokens += sum(map(len, command.token_ids))
        [vectors] = found
        return [
            request.pooled(vector.numpy())
            if bool(vector.isfinite().all())
            else failed(request, "non_finite_logits", not_finite(self._model.dtype))
            for request, vector in zip(batch, vectors, strict=True)
        ]

    def obey(self, command: PooledTexts) -> None:
        """See ``BatchTask``."""

        def compute() -> None:
            self._forward(command)

        together(self._replica, compute)

    def _forward(self, texts: PooledTexts) -> list[torch.Tensor]:
        """Return of each text what the model gives: [D] if it pools itself, or else [T, D]."""
        ids, is_real = pad_right(texts.token_ids, self._model.pad_token_id, self._replica.device)
        types = {}
        if isinstance(self._model.module, TextHead) and any(begin is not None for begin in texts.second_from):
            begins = [ids.shape[1] if begin is None else begin for begin in texts.second_from]
            places, first = torch.arange(ids.shape[1], device=ids.device), torch.tensor(begins, device=ids.device)
            types = {"token_type_ids": (places >= first[:, None]).long() * is_real}
        with torch.inference_mode():
            logits = self._model.module(input_ids=ids, attention_mask=is_real, use_cache=False, **types).logits
        if isinstance(self._model.module, TextHead):
            return list(logits)
        return [tokens[: len(own)] for tokens, own in zip(logits, texts.token_ids, strict=True)]

    def _pooled(self, texts: PooledTexts, batch: list[Request]) -> torch.Tensor:
        """Return [B, D] float32, on the host."""
        vectors = zip(self._forward(texts), batch, strict=True)
        pooled = torch.stack([_pool(vector, _task_of(request)) for vector, request in vectors]).cpu()
        return self._model.after_pooling(pooled)


def _task_of(request: Request) -> Pool:
    assert isinstance(request.task, Pool), "a batch has one kind of task"
    return request.task


def _pool(numbers: torch.Tensor, task: Pool) -> torch.Tensor:
    """Return [D] float32, from numbers that are pooled already, or [T, D]."""
    if numbers.dim() == 1:
        return numbers.float()
    if task.pooling == "mean":
        return numbers.float().mean(dim=0)
    if task.pooling == "weighted-mean":
        counts = torch.arange(1, len(numbers) + 1, device=numbers.device, dtype=torch.float32)
        return counts @ numbers.float() / counts.sum()
    return numbers[0 if task.pooling == "cls" else -1].float()
