"""Choosing a token inside transformers' ``generate``: the leader chooses and tells, the followers take.

On every rank ``generate`` runs greedily on logits in which a chooser has left one token possible: the one that the
leader broadcast. So ranks cannot drift apart, whatever the last bits of their logits are. In place of tokens the leader
can send that it leaves the batch; all ranks then stop after the same step.

Letters: B rows of the batch, T padded prompt length, V vocabulary.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers import LogitsProcessor, StoppingCriteria

from job.config import SamplingParams
from job.engine.failures import describe_failure
from job.engine.logits.constraint import ConstrainedBatch, Constraint
from job.engine.logits.sampling import choose_tokens, penalize_repetition, token_logprobs
from job.engine.protocol import EndsText
from job.launch.replica import Replica
from job.records import SampleKey

LEAVE = -1
"""Sent in place of the tokens of a step: the leader leaves the batch, because all rows have ended, because it was asked
to stop, or because of a failure of its own."""


class Chooser(LogitsProcessor):  # type: ignore[misc]
    """Leaves one token per row possible: the one the leader chose. Used by followers as it is."""

    def __init__(self, replica: Replica) -> None:
        """Take part in the replica's broadcasts."""
        self._replica = replica
        self.mask: torch.Tensor  # [B, T] int64, of the prompts
        self.has_left = False

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Choose.

        Args:
            input_ids: [B, T + position] int64.
            scores: [B, V] float32.

        Returns:
            [B, V] float32: 0 at the chosen token, -inf elsewhere.
        """
        tokens = self._replica.broadcast_tensor(self.tokens_of_step(input_ids, scores))
        if int(tokens[0]) == LEAVE:
            self.has_left = True
            tokens = torch.zeros_like(tokens)
        return torch.full_like(scores, -torch.inf).scatter_(-1, tokens[:, None], 0.0)

    def tokens_of_step(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Return [B] int64: room for the leader's tokens."""
        return torch.empty(len(scores), dtype=torch.int64, device=scores.device)


class LeadingChooser(Chooser):
    """Samples the tokens of a batch and remembers them."""

    def __init__(
        self,
        replica: Replica,
        params: SamplingParams,
        keys: Sequence[SampleKey],
        eos_token_ids: Sequence[int],
        should_stop: Callable[[], bool],
        ends_text: EndsText | None = None,
        constraint: Constraint | None = None,
    ) -> None:
        """Choose for a batch.

        Args:
            keys: of the rows.
            eos_token_ids: what ends a row; empty if nothing does.
            should_stop: asked before every token.
            ends_text: finds the stop strings in what the rows generated.
            constraint: what every completion must be.
        """
        super().__init__(replica)
        self._params, self._keys, self._should_stop, self._ends_text = params, keys, should_stop, ends_text
        self._eos = torch.tensor(list(eos_token_ids), dtype=torch.int64, device=replica.device)
        self._ended = torch.zeros(len(keys), dtype=torch.bool, device=replica.device)
        self._constrained = None if constraint is None else ConstrainedBatch(constraint, len(keys), eos_token_ids)
        self.is_finite = torch.ones_like(self._ended)
        self.steps: list[torch.Tensor] = []
        """[B] int64 each: the tokens sent so far. Of a row that has ended, what follows means nothing."""
        self.logprobs: list[torch.Tensor] = []
        """[B] float32 each, if they were asked."""
        self.stops: dict[int, int] = {}
        """Row to number of tokens, for rows that a stop string or the grammar ended."""
        self.failures: dict[int, str] = {}
        """Rows that the grammar failed on, and why."""
        self.failure: str | None = None
        """Why the leader left, if it was not asked to stop."""

    def tokens_of_step(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Return [B] int64: the chosen tokens, or LEAVE."""
        # generate knows nothing of stop strings: it would go on to max_new_tokens with a batch that has ended.
        if self._should_stop() or bool(self._ended.all()):
            return self._leave()
        try:
            tokens = self._choose(input_ids, scores)
        except Exception as error:  # only this rank knows: the others wait in the broadcast, and must be told
            self.failure = describe_failure(error)
            return self._leave()
        self.steps.append(tokens)
        self._ended |= torch.isin(tokens, self._eos)
        if self._constrained is not None:
            self._follow_grammar(self._constrained, tokens.tolist())
        if self._ends_text is not None:
            self._look_for_stops(self._ends_text)
        return tokens

    def _look_for_stops(self, ends_text: EndsText) -> None:
        going = (~self._ended).nonzero().squeeze(-1).tolist()
        texts = torch.stack(self.steps, dim=1)[going].tolist()
        for row, has_ended in zip(going, ends_text(texts), strict=True):
            if has_ended:
                self._ended[row] = True
                self.stops[row] = len(self.steps)

    def _follow_grammar(self, batch: ConstrainedBatch, tokens: list[int]) -> None:
        for row, failure in batch.advance(tokens).items():
            self._ended[row] = True
            self.stops[row] = len(self.steps)
            if failure is not None:
                self.failures[row] = failure

    def _leave(self) -> torch.Tensor:
        return torch.full_like(self._ended, LEAVE, dtype=torch.int64)

    def _choose(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        position = input_ids.shape[1] - self.mask.shape[1]
        # A NaN anywhere makes the maximum NaN. A row that has ended only reads padding: what it says does not count.
        self.is_finite &= scores.amax(dim=-1).isfinite() | self._ended
        logits = torch.where((self.is_finite & ~self._ended)[:, None], scores, 0.0)
        raw = logits
        if self._constrained is not None:
            logits = self._constrained.apply(logits)
        if self._params.repetition_penalty != 1:
            real = torch.cat([self.mask, self.mask.new_ones(len(scores), position)], dim=1)
            # Padding is no token that occurred: its places add nothing.
            seen = torch.zeros_like(logits).scatter_add_(1, input_ids, real.to(logits.dtype)) > 0
            logits = penalize_repetition(logits, seen, self._params.repetition_penalty)
        tokens = choose_tokens(logits, self._params, self._keys, [position] * len(logits))
        if self._params.logprobs:
            self.logprobs.append(token_logprobs(raw, tokens))
        return tokens


class HasLeft(StoppingCriteria):  # type: ignore[misc]
    """Ends a batch that the leader has left."""

    def __init__(self, chooser: Chooser) -> None:
        """Watch a chooser."""
        self._chooser = chooser

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        """Return [B] bool, True for rows that are done."""
        return torch.full((len(input_ids),), self._chooser.has_left, dtype=torch.bool, device=input_ids.device)
