"""Scores choices in static batches of whole texts, for models that continuous batching does not serve.

Texts are padded at their end, which no token before it sees: so it is right for every causal model.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from job.config import EngineConfig
from job.engine.failures import failed, not_finite
from job.engine.logits.trie import ChoiceTrie, edge_logprobs
from job.engine.model.loading import LoadedModel
from job.engine.static.batches import StaticBatches
from job.engine.static.limits import batch_limits
from job.launch.replica import Replica
from job.records import Generation, Request

LOGITS_BYTES = 1 << 30
"""A batch's logits of all its tokens take so much memory at most, unless one row alone takes more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Texts:
    """What the leader sends for one batch."""

    token_ids: list[list[int]]
    first_wanted: list[int]
    """Of each text, the first token whose logits are wanted; those of all behind it are, too."""


class StaticScorer(StaticBatches):
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
        max_rows, max_tokens = batch_limits(model, config, replica.device)
        vocab_size = model.module.config.get_text_config().vocab_size
        super().__init__(
            replica,
            should_stop,
            max_rows=max(1, max_rows // len(trie.branches)),
            max_tokens=min(max_tokens, LOGITS_BYTES // (vocab_size * model.dtype.itemsize)),
        )
        self._model, self._trie = model, trie

    def _room(self, request: Request) -> int:
        """Return the tokens of all texts of a request."""
        return len(self._trie.branches) * (len(request.prompt_ids) + self._trie.max_branch_tokens)

    def _complete(self, batch: list[Request]) -> list[Generation]:
        """Score a batch."""
        texts = Texts(
            token_ids=[[*request.prompt_ids, *branch.token_ids] for request in batch for branch in self._trie.branches],
            first_wanted=[len(r.prompt_ids) - 1 + branch.num_known for r in batch for branch in self._trie.branches],
        )
        self._replica.command(texts)
        logits = self._run(texts)
        self.num_computed_tokens += sum(map(len, texts.token_ids))
        return self._score(batch, logits)

    def _obey(self, command: Texts) -> None:
        """Compute the same texts as the leader."""
        self._run(command)

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
        """Return the wanted logits [W, V]."""
        computed: list[torch.Tensor] = []
        self._together(lambda: computed.append(self._compute(texts)))
        return computed[0]

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
