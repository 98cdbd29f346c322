"""Scores choices in static batches of whole texts, for models that continuous batching does not serve.

Texts are padded at their end, which no token before it sees: so it is right for every causal model.
"""

import contextlib
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from job.config import EngineConfig
from job.distributed import Replica
from job.engine.batch_limits import batch_limits
from job.engine.failures import OUT_OF_MEMORY, BatchFailed, OutOfMemory, describe_failure, failed, not_finite
from job.engine.loading import LoadedModel
from job.engine.static import KEEP_ALIVE, PENDING_BATCHES, Closed
from job.engine.trie import ChoiceTrie, edge_logprobs
from job.errors import JobError
from job.records import Generation, Request

LOGITS_BYTES = 1 << 30
"""A batch's logits of all its tokens take so much memory at most, unless one row alone takes more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Texts:
    """What the leader sends for one batch."""

    token_ids: list[list[int]]
    first_wanted: list[int]
    """Of each text, the first token whose logits are wanted; those of all behind it are, too."""


class StaticScorer:
    """Implements ``Engine`` on a loaded model."""

    def __init__(
        self,
        model: LoadedModel,
        trie: ChoiceTrie,
        config: EngineConfig,
        replica: Replica,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> None:
        """Score the choices of a trie.

        Args:
            should_stop: asked by the leader before every batch.
        """
        self._model, self._trie, self._replica, self._should_stop = model, trie, replica, should_stop
        max_rows, self._max_tokens = batch_limits(model, config, replica.device)
        self._max_rows = max(1, max_rows // len(trie.branches))
        vocab_size = model.module.config.get_text_config().vocab_size
        self._max_tokens = min(self._max_tokens, LOGITS_BYTES // (vocab_size * model.dtype.itemsize))
        self._pending: deque[Request] = deque()
        self._batch: list[Request] = []
        self.num_computed_tokens = 0

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

    def step(self) -> list[Generation]:
        """Score one batch of the longest pending requests."""
        if not self._pending or self._should_stop():
            return []
        self._pending = deque(sorted(self._pending, key=lambda request: -len(request.prompt_ids)))
        text_tokens = len(self._pending[0].prompt_ids) + self._trie.max_branch_tokens
        room = self._max_tokens // (text_tokens * len(self._trie.branches))
        num_rows = max(1, min(self._max_rows, room, len(self._pending)))
        self._batch = [self._pending.popleft() for _ in range(num_rows)]
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
            if isinstance(command, Texts):
                with contextlib.suppress(OutOfMemory, BatchFailed):
                    self._run(command)

    def _attempt(self, batch: list[Request]) -> list[Generation]:
        """Score a batch, or what can be scored of it."""
        texts = Texts(
            token_ids=[[*request.prompt_ids, *branch.token_ids] for request in batch for branch in self._trie.branches],
            first_wanted=[len(r.prompt_ids) - 1 + branch.num_known for r in batch for branch in self._trie.branches],
        )
        self._replica.command(texts)
        try:
            logits = self._run(texts)
        except OutOfMemory:
            if len(batch) == 1:
                return [failed(batch[0], "out_of_memory", OUT_OF_MEMORY)]
            self._max_tokens = max(1, self._max_tokens // 2)
            self._pending.extend(batch)
            return []
        except BatchFailed as error:
            if len(batch) == 1:
                return [failed(batch[0], "engine_error", str(error))]
            half = len(batch) // 2
            return [generation for part in (batch[:half], batch[half:]) for generation in self._attempt(part)]
        self.num_computed_tokens += sum(map(len, texts.token_ids))
        return self._score(batch, logits)

    def _score(self, batch: Sequence[Request], logits: torch.Tensor) -> list[Generation]:
        nodes = [node for branch in self._trie.branches for node in branch.nodes]
        logprobs, is_finite = edge_logprobs(logits, nodes * len(batch), self._trie)
        generations = []
        for idx, request in enumerate(batch):
            rows = range(idx * len(nodes), (idx + 1) * len(nodes))
            if all(is_finite[row] for row in rows):
                edges = np.full(self._trie.num_edges, np.nan)
                for node, row in zip(nodes, rows, strict=True):
                    edges[self._trie.edges(node)] = logprobs[row]
                generations.append(self._trie.generation(request, edges))
            else:
                generations.append(failed(request, "non_finite_logits", not_finite(self._model.dtype)))
        return generations

    def _run(self, texts: Texts) -> torch.Tensor:
        """Return the wanted logits [W, V] on this rank, after hearing how it went on the others.

        Raises:
            OutOfMemory, BatchFailed: all ranks agree that it failed.
        """
        failure, logits = None, None
        try:
            logits = self._compute(texts)
        except JobError:
            raise
        except Exception as error:  # whatever the model's code raises on these rows
            failure = describe_failure(error)
        # Outside the except block: the traceback held the tensors of the failed forward pass alive.
        statuses = [status for status in self._replica.gather_status(failure) if status is not None]
        if OUT_OF_MEMORY in statuses:
            raise OutOfMemory
        if statuses:
            raise BatchFailed(statuses[0])
        assert logits is not None
        return logits

    def _compute(self, texts: Texts) -> torch.Tensor:
        width = max(map(len, texts.token_ids))
        device = self._replica.device
        ids = torch.full((len(texts.token_ids), width), self._model.pad_token_id, dtype=torch.int64)
        is_real = torch.zeros_like(ids)
        for row, token_ids in enumerate(texts.token_ids):
            ids[row, : len(token_ids)] = torch.tensor(token_ids)
            is_real[row, : len(token_ids)] = 1
        with torch.inference_mode():
            output = self._model.module(input_ids=ids.to(device), attention_mask=is_real.to(device), use_cache=False)
        wanted = [
            output.logits[row, first : len(token_ids)]
            for row, (token_ids, first) in enumerate(zip(texts.token_ids, texts.first_wanted, strict=True))
        ]
        return torch.cat(wanted)
