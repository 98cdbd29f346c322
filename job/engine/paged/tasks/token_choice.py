"""From a step's logits to tokens, on the leader. Remembers which tokens each slot has seen, if that matters."""

from collections import abc

import torch

from job.config import SamplingParams
from job.engine.logits.masks import Masks
from job.engine.logits.sampling import choose_tokens, largest, penalize_repetition, token_logprobs
from job.engine.paged.schedule.sequences import Sequence


class Choosing:
    """Chooses the next token of rows."""

    def __init__(self, params: SamplingParams, *, num_slots: int) -> None:
        """Choose with these parameters."""
        self._params, self._num_slots = params, num_slots
        self._seen: torch.Tensor | None = None
        self._num_seen = [0] * num_slots

    def choose(
        self, logits: torch.Tensor, rows: abc.Sequence[Sequence], masks: Masks | None = None
    ) -> tuple[list[int], list[float] | None, list[bool]]:
        """Choose a token for each row.

        Args:
            logits: [B, V] in the model's dtype.
            rows: the sequences, in the order of ``logits``.
            masks: the tokens that each may take, if not all.

        Returns:
            Tokens, their log probabilities if they are wanted, and whether each row's logits are finite: if not, its
            token means nothing.
        """
        top, best = largest(logits)
        is_finite = top.isfinite()
        params = self._params
        if params.temperature == 0 and params.repetition_penalty == 1 and not params.logprobs:
            return (best if masks is None else masks.best(logits, best)).tolist(), None, is_finite.tolist()
        raw = logits = torch.where(is_finite[:, None], logits, 0.0)
        logits = (logits if masks is None else masks.apply(logits)).float()
        if params.repetition_penalty != 1:
            logits = penalize_repetition(logits, self._seen_by(rows, logits), params.repetition_penalty)
        keys = [row.request.key for row in rows]
        tokens = choose_tokens(logits, params, keys, [row.num_generated for row in rows])
        logprobs = token_logprobs(raw, tokens).tolist() if params.logprobs else None
        return tokens.tolist(), logprobs, is_finite.tolist()

    def _seen_by(self, rows: abc.Sequence[Sequence], logits: torch.Tensor) -> torch.Tensor:
        """Return [B, V] bool. A slot's row is rebuilt when its first token is chosen, and after a preemption."""
        device = logits.device
        if self._seen is None:
            self._seen = torch.zeros(self._num_slots, logits.shape[1], dtype=torch.bool, device=device)
        new: list[tuple[int, int]] = []
        for row in rows:
            if row.is_new_in_slot:
                self._seen[row.slot] = False
                self._num_seen[row.slot] = 0
                row.is_new_in_slot = False
            new += [(row.slot, token) for token in row.token_ids[self._num_seen[row.slot] :]]
            self._num_seen[row.slot] = len(row.token_ids)
        new_slots, new_tokens = torch.tensor(new, device=device).reshape(-1, 2).unbind(1)
        self._seen[new_slots, new_tokens] = True
        return self._seen[torch.tensor([row.slot for row in rows], device=device)]
