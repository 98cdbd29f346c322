"""Static batches of whole texts, to score choices.

Texts are padded at the end, which no earlier token sees, so the scores are correct for every causal model.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from job.engine.failures import failed, not_finite
from job.engine.logits.trie import ChoiceTrie, edge_logprobs, trie_of
from job.engine.model.loading import LoadedModel
from job.engine.static.batch_task import Room, together
from job.launch.replica import Replica
from job.records import Generation, Partial, Request
from job.tasks import Score

LOGITS_BYTES = 1 << 30
"""The logits of all tokens of a batch take at most this much memory, unless a single row takes more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Texts:
    """What the leader sends for one batch."""

    token_ids: list[list[int]]
    first_wanted: list[int]
    """For each text, the first token whose logits are wanted; those of all later tokens are wanted, too."""


class Scoring:
    """Implements ``BatchTask`` for ``Score``."""

    command_type: ClassVar[type] = Texts
    unfinished: ClassVar[tuple[Partial, ...]] = ()

    def __init__(
        self, model: LoadedModel, replica: Replica, should_stop: Callable[[], bool], *, max_rows: int, max_tokens: int
    ) -> None:
        """Prepare to score with a loaded model; each request brings its choices."""
        self._model, self._replica = model, replica
        self.max_rows, self.max_tokens = max_rows, most_tokens(model, max_tokens)
        self.num_computed_tokens = 0

    def room(self, request: Request) -> Room:
        """See ``BatchTask``. Each branch of the choices is a row."""
        trie = _trie_of(request)
        return Room(len(trie.branches), len(request.prompt_ids), trie.max_branch_tokens)

    def compute(self, batch: list[Request]) -> list[Generation]:
        """See ``BatchTask``. Only what a causal model says after a text is the score of the text's next token."""
        if self._model.module.config.is_encoder_decoder:
            detail = "choices need a causal model, and this is an encoder-decoder"
            return [failed(request, "engine_error", detail) for request in batch]
        branches = [(request.prompt_ids, branch) for request in batch for branch in _trie_of(request).branches]
        texts = Texts(
            token_ids=[[*prompt_ids, *branch.token_ids] for prompt_ids, branch in branches],
            first_wanted=[len(prompt_ids) - 1 + branch.num_known for prompt_ids, branch in branches],
        )
        self._replica.command(texts)
        generations: list[Generation] = []

        def compute() -> None:
            generations.extend(self._score(batch, self._logits(texts)))

        together(self._replica, compute)
        self.num_computed_tokens += sum(map(len, texts.token_ids))
        return generations

    def obey(self, command: Texts) -> None:
        """See ``BatchTask``."""

        def compute() -> None:
            self._logits(command)

        together(self._replica, compute)

    def _score(self, batch: Sequence[Request], logits: torch.Tensor) -> list[Generation]:
        tries = [_trie_of(request) for request in batch]
        nodes = [(trie, node) for trie in tries for branch in trie.branches for node in branch.nodes]
        scores = iter(zip(nodes, *edge_logprobs(logits, nodes), strict=True))
        generations = []
        for request, trie in zip(batch, tries, strict=True):
            edges, is_row_finite = np.full(trie.num_edges, np.nan), True
            for _ in range(sum(len(branch.nodes) for branch in trie.branches)):
                (_, node), logprobs, is_finite = next(scores)
                edges[trie.edges(node)] = logprobs
                is_row_finite &= is_finite
            if is_row_finite:
                generations.append(trie.generation(request, edges))
            else:
                generations.append(failed(request, "non_finite_logits", not_finite(self._model.dtype)))
        return generations

    def _logits(self, texts: Texts) -> torch.Tensor:
        """Return the wanted logits [W, V]."""
        ids, is_real = pad_right(texts.token_ids, self._model.pad_token_id, self._replica.device)
        with torch.inference_mode():
            output = self._model.module(input_ids=ids, attention_mask=is_real, use_cache=False)
        wanted = [
            output.logits[row, first : len(token_ids)]
            for row, (token_ids, first) in enumerate(zip(texts.token_ids, texts.first_wanted, strict=True))
        ]
        return torch.cat(wanted)


def most_tokens(model: LoadedModel, max_tokens: int) -> int:
    """Return how many tokens a batch may have so that their logits, too, are within their limit."""
    vocab_size = model.module.config.get_text_config().vocab_size
    return int(min(max_tokens, LOGITS_BYTES // (vocab_size * model.dtype.itemsize)))


def pad_right(all_ids: Sequence[Sequence[int]], pad_id: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Return ids and attention mask, both [B, T] int64, with the texts on the left."""
    ids = torch.full((len(all_ids), max(map(len, all_ids))), pad_id, dtype=torch.int64)
    is_real = torch.zeros_like(ids)
    for row, token_ids in enumerate(all_ids):
        ids[row, : len(token_ids)] = torch.tensor(token_ids)
        is_real[row, : len(token_ids)] = 1
    return ids.to(device), is_real.to(device)


def _trie_of(request: Request) -> ChoiceTrie:
    assert isinstance(request.task, Score)
    return trie_of(request.task.choice_ids)
