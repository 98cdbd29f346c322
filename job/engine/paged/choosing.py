"""From a step's logits to tokens, on the leader. Remembers which tokens each slot has seen, if that matters."""

from collections.abc import Sequence

import torch

from job.config import SamplingParams
from job.engine.paged.sequences import Running
from job.engine.sampling import choose_tokens, largest, penalize_repetition, token_logprobs


class Choosing:
    """Chooses the next token of rows."""

    def __init__(self, params: SamplingParams, *, num_slots: int) -> None:
        """Choose with these parameters."""
        self._params, self._num_slots = params, num_slots
        self._seen: torch.Tensor | None = None

    def choose(self, logits: torch.Tensor, rows: Sequence[Running]) -> tuple[list[int], list[float] | None, list[bool]]:
        """Choose a token for each row.

        Args:
            logits: [B, V] in the model's dtype.
            rows: the sequences, in the order of ``logits``.

        Returns:
            Tokens, their log probabilities if they are wanted, and whether each row's logits are finite: if not, its
            token means nothing.
        """
        top, best = largest(logits)
        is_finite = top.isfinite()
        params = self._params
        if params.temperature == 0 and params.repetition_penalty == 1 and not params.logprobs:
            return best.tolist(), None, is_finite.tolist()
        raw = logits = torch.where(is_finite[:, None], logits, 0.0).float()
        if params.repetition_penalty != 1:
            logits = penalize_repetition(logits, self._seen_by(rows, logits), params.repetition_penalty)
        keys = [row.request.key for row in rows]
        tokens = choose_tokens(logits, params, keys, [row.num_generated for row in rows])
        logprobs = token_logprobs(raw, tokens).tolist() if params.logprobs else None
        return tokens.tolist(), logprobs, is_finite.tolist()

    def _seen_by(self, rows: Sequence[Running], logits: torch.Tensor) -> torch.Tensor:
        """Return [B, V] bool. A slot's row is rebuilt when its first token is chosen, and after a preemption."""
        if self._seen is None:
            self._seen = torch.zeros(self._num_slots, logits.shape[1], dtype=torch.bool, device=logits.device)
        for row in rows:
            if row.is_new_in_slot:
                self._seen[row.slot] = False
                self._seen[row.slot, torch.tensor(row.token_ids, device=logits.device)] = True
                row.is_new_in_slot = False
        slots = torch.tensor([row.slot for row in rows], device=logits.device)
        self._seen[slots, torch.tensor([row.token_ids[-1] for row in rows], device=logits.device)] = True
        return self._seen[slots]
